# Runs engines: darknet-runtime with the library of one target, for an application to be built on.
#
#   python -m tools.packages darknet-runtime
#   docker build -f docker/runtime.Dockerfile --build-arg EXTRA=openvino -t dnc-runtime .
#   docker run --rm -v "$PWD:/work:ro" dnc-runtime app.py
#
# For target cuda, EXTRA=cuda, and `docker run --gpus all`.
FROM python:3.12-slim-bookworm
ARG EXTRA=onnx
# A file is of one version, and its extras are bounded by it.
# hadolint ignore=DL3013
RUN --mount=type=bind,source=dist,target=/dist \
    wheel=$(echo /dist/darknet_runtime-*.whl) && pip install --no-cache-dir "${wheel}[${EXTRA}]"
ENV DNC_CACHE=/tmp/dnc
WORKDIR /work
USER 65534
ENTRYPOINT ["python"]
CMD ["-c", "import dnc; print(dnc.__version__)"]
