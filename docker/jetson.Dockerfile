# Runs engines of target cuda, back end tvm, on a Jetson with JetPack 7 (CUDA 13: its driver comes with the board, the
# CUDA runtime from PyPI). Built on the board, or with `docker buildx build --platform linux/arm64`.
#
#   python -m tools.packages darknet-runtime
#   docker build -f docker/jetson.Dockerfile -t dnc-jetson .
#   docker run --rm --runtime nvidia -v "$PWD:/work:ro" dnc-jetson app.py
#
# Engines come from another machine: dnc compile NET --target cuda --option backend=tvm --option arch=sm_87,sm_110
# for Orin and Thor. Not tried on one yet.
FROM ubuntu:24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3=3.12.* python3-venv=3.12.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/dnc
ENV PATH=/opt/dnc/bin:$PATH DNC_CACHE=/tmp/dnc NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A file is of one version, and its extras are bounded by it.
# hadolint ignore=DL3013
RUN --mount=type=bind,source=dist,target=/dist \
    wheel=$(echo /dist/darknet_runtime-*.whl) && pip install --no-cache-dir "${wheel}[cuda-tvm]"
WORKDIR /work
USER 65534
ENTRYPOINT ["python"]
CMD ["-c", "import dnc; print(dnc.__version__)"]
