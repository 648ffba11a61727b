# syntax=docker/dockerfile:1
# adapt with the TensorRT of one of NVIDIA's containers (docs/deployment.md). Linted, never built.
# 25.10 has TensorRT 10.13.3 for CUDA 13, as constraints.txt has PyTorch, and takes a driver of 580.
ARG TENSORRT=25.10-py3
FROM nvcr.io/nvidia/tensorrt:${TENSORRT}

# TensorRT is the container's: the extra `trt` would put another one beside it. Without the
# constraints that NVIDIA's containers may set, which are not of the versions that were tested.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_CONSTRAINT=
COPY . /opt/adapt
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m pip install --constraint /opt/adapt/constraints.txt /opt/adapt polygraphy

# Weights are not in the image: `adapt weights` puts them into ~/.cache, which can be mounted.
RUN useradd --create-home --uid 10001 adapt
USER 10001
WORKDIR /home/adapt
ENTRYPOINT ["adapt"]
CMD ["--help"]
