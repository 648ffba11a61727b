"""What works on this machine, and how to get what does not?"""

from importlib import metadata
from typing import Any

import torch

from adapt.errors import AdaptError
from adapt.weights import PUBLISHED, find_local_weights
from bench.provenance import device_description
from bench.target import ANCHOR
from bench.unit_graphs import unit_model
from export.engine import load_tensorrt, trt_flavours
from export.runner import PROVIDERS, RUNTIMES, ort_session


def diagnose() -> dict[str, Any]:
    """Return one line per library, runtime, weight file and for the device."""
    found: dict[str, Any] = {"device": device_description()}
    for library in ("torch", "torchvision", "pycocotools", "onnx", "typer", "rich"):
        found[library] = metadata.version(library)
    for runtime in RUNTIMES:
        found[f"runtime {runtime}"] = _runtime(runtime)
    found["TensorRT"] = _tensorrt()
    for source in PUBLISHED:
        found[f"weights {source}"] = _weights(source)
    return found


def _runtime(runtime: str) -> str:
    needs_gpu = runtime not in ("torch", "ort-cpu")
    on_tensorrt = runtime.startswith("tensorrt")
    try:
        if on_tensorrt:
            load_tensorrt(runtime.replace("-", "_"))
        if needs_gpu and not torch.cuda.is_available():
            return f"{'builds engines only' if on_tensorrt else 'not usable'}: no CUDA GPU found"
        if runtime in PROVIDERS:
            ort_session(runtime, unit_model(ANCHOR), threads=1)
    except AdaptError as error:
        return f"not usable: {error}"
    return "usable"


def _tensorrt() -> str:
    flavours = trt_flavours()
    if not flavours:
        return (
            "not installed: `pip install 'adapt-detector[trt]'` (NVIDIA GPU) or "
            "`pip install 'adapt-detector[trt-rtx]'` (builds engines without one)"
        )
    installed = ", ".join(f"{name} {version}" for name, version in flavours.items())
    return f"{installed}: builds engines"


def _weights(source: str) -> str:
    try:
        file = find_local_weights(source)
    except AdaptError as error:
        return str(error)
    return str(file) if file else f"not on this machine: run `adapt weights {source}`"
