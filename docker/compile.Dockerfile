# Compiles networks: all of dnc, with the targets that CPUs run.
#
#   docker build -f docker/compile.Dockerfile -t dnc .
#   docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" dnc compile yolov4-tiny.cfg -o yolov4-tiny.engine
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# TVM's compiler links what it compiles.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++=4:12.* \
    && rm -rf /var/lib/apt/lists/*
# A file is of one version, and its extras are bounded by it.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    wheel=$(echo /wheels/*.whl) && pip install --no-cache-dir "${wheel}[onnx,openvino,tvm]"
ENV DNC_CACHE=/tmp/dnc
WORKDIR /work
USER 65534
ENTRYPOINT ["dnc"]
CMD ["--help"]
