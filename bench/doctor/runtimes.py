"""Which runtimes and weights work on this machine, and how to get the others?"""

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

from adapt.errors import AdaptError
from adapt.network.weights import PUBLISHED, find_local_weights
from bench.doctor.cuda import CudaStack, unsupported_by_rtx
from bench.latency.onnx_units import unit_model
from bench.latency.provenance import device_description
from bench.latency.subject import ANCHOR
from export.engine.installed import INSTALL, check_builder, trt_flavours
from export.run.onnx_session import PROVIDERS, ort_session
from export.run.runner import RUNTIMES


@dataclass(frozen=True)
class RuntimeState:
    """Whether a runtime works here.

    Attributes:
        version: Installed version; None if it is not installed.
        usable: Whether it runs detectors here.
        builds: Whether it builds engines here; None for a runtime without engines.
        problem: Why it is not usable; empty if it is.
        fix: What makes it usable; empty if it is.
        note: What to know although it is usable.
    """

    version: str | None
    usable: bool
    builds: bool | None = None
    problem: str = ""
    fix: str = ""
    note: str = ""

    def __str__(self) -> str:
        version = self.version or "not installed"
        builds = "builds engines, " if self.builds else ""
        if self.usable:
            return f"{version}: {builds}usable{f'; {self.note}' if self.note else ''}"
        problem = f": {builds}not usable here: {self.problem}" if self.version else ""
        return f"{version}{problem}; {self.fix}"


def diagnose() -> dict[str, Any]:
    """Return libraries, runtimes, weight files and the device, each with what to do about it."""
    cuda = CudaStack.here()
    findings: dict[str, Any] = {"device": device_description(), "cuda": str(cuda)}
    if cuda.gpu and cuda.fix:
        findings["cuda"] += f"; {cuda.problem or 'they do not fit'}; {cuda.fix}"
    for library in ("torch", "torchvision", "pycocotools", "onnx", "typer", "rich"):
        findings[library] = metadata.version(library)
    for runtime in RUNTIMES:
        findings[f"runtime {runtime}"] = runtime_state(runtime)
    for source in PUBLISHED:
        findings[f"weights {source}"] = _weights(source)
    return findings


def to_json(findings: dict[str, Any]) -> dict[str, Any]:
    """Return what :func:`diagnose` found as plain JSON content."""
    return {k: asdict(v) if isinstance(v, RuntimeState) else v for k, v in findings.items()}


def runtime_state(runtime: str) -> RuntimeState:
    """Try a runtime.

    Args:
        runtime: One of :data:`export.run.runner.RUNTIMES`.
    """
    if runtime == "torch":
        return RuntimeState(torch.__version__, usable=True)
    if runtime in PROVIDERS:
        return _onnxruntime(runtime)
    return _tensorrt(runtime)


def _onnxruntime(runtime: str) -> RuntimeState:
    version = _version("onnxruntime-gpu") or (
        _version("onnxruntime") if runtime == "ort-cpu" else None
    )
    package = "onnxruntime" if runtime == "ort-cpu" else "onnxruntime-gpu"
    install = f"run `pip install {package}`"
    if version is None:
        return RuntimeState(None, usable=False, problem="not installed", fix=install)
    if runtime == "ort-cuda" and not torch.cuda.is_available():
        cuda = CudaStack.here()
        return RuntimeState(version, usable=False, problem=cuda.problem, fix=cuda.fix)
    try:
        ort_session(runtime, unit_model(ANCHOR), threads=1)
    except AdaptError as error:
        fix = (runtime == "ort-cuda" and CudaStack.here().fix) or install
        return RuntimeState(version, usable=False, problem=str(error), fix=fix)
    return RuntimeState(version, usable=True)


def _tensorrt(runtime: str) -> RuntimeState:
    flavour = runtime.replace("-", "_")
    version = trt_flavours().get(flavour)
    if version is None:
        install = INSTALL[flavour]
        return RuntimeState(None, usable=False, builds=False, problem="not installed", fix=install)
    cuda = CudaStack.here()
    try:
        check_builder(flavour)
    except AdaptError as error:
        fix = cuda.fix or "update the driver or TensorRT"
        return RuntimeState(version, usable=False, builds=False, problem=str(error), fix=fix)
    if not torch.cuda.is_available():
        return RuntimeState(version, usable=False, builds=True, problem=cuda.problem, fix=cuda.fix)
    capability = torch.cuda.get_device_capability()
    note = unsupported_by_rtx(capability) if flavour == "tensorrt_rtx" else ""
    return RuntimeState(version, usable=True, builds=True, note=note)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _weights(source: str) -> str:
    try:
        file = find_local_weights(source)
    except AdaptError as error:
        return str(error)
    return str(file) if file else f"not on this machine: run `adapt weights {source}`"
