"""How does ONNX become a TensorRT engine?

Every name used of TensorRT is the same in TensorRT 10, TensorRT 11 and TensorRT-RTX; the network
is strongly typed, so the precision of the engine is that of the ONNX file.
"""

import functools
import importlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from adapt.artifacts import atomic_path, file_hash, header, write_json
from adapt.errors import AdaptError
from export.onnx_file import description_of, load_onnx

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # in order of preference
_INSTALL = "run `pip install 'adapt-detector[trt]'` or `pip install 'adapt-detector[trt-rtx]'`"


@dataclass(frozen=True)
class EngineReport:
    """What was built; stored as JSON beside the engine.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        tensorrt_version: Version of TensorRT; engines do not load in another one.
        target: GPU or compute capability that the engine runs on.
        onnx_sha256: Hash of the ONNX file.
        precision: Precision that the ONNX file names, or ``unknown``.
        inputs: Name to shape and data type.
        outputs: Name to shape and data type.
        build_seconds: Wall time of parsing and building.
        size_bytes: Size of the engine.
    """

    flavour: str
    tensorrt_version: str
    target: str
    onnx_sha256: str
    precision: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    build_seconds: float
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def trt_flavours() -> dict[str, str]:
    """Return the installed kinds of TensorRT and their versions, preferred first."""
    modules = {name: _import(name) for name in FLAVOURS}
    return {name: module.__version__ for name, module in modules.items() if module is not None}


def sidecar_path(plan_path: Path) -> Path:
    """Return where the description of an engine is stored."""
    return plan_path.with_name(plan_path.name + ".json")


def build_engine(onnx_path: Path, plan_path: Path, *, flavour: str | None = None) -> EngineReport:
    """Build an engine and write it with a JSON description (``<plan>.json``) beside it.

    Args:
        onnx_path: File that ``adapt export`` wrote.
        plan_path: Engine to write.
        flavour: ``tensorrt`` or ``tensorrt_rtx``; by default the first that is installed.

    Returns:
        What was built.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons,
            or a file cannot be read or written.
    """
    description = description_of(load_onnx(onnx_path)) or {}
    trt = load_tensorrt(flavour)
    with atomic_path(plan_path) as temporary:
        start = time.perf_counter()
        built = build_plan(onnx_path.read_bytes(), str(onnx_path), flavour=trt.__name__)
        seconds = time.perf_counter() - start
        temporary.write_bytes(built.plan)
    report = EngineReport(
        flavour=trt.__name__,
        tensorrt_version=trt.__version__,
        target=built.target,
        onnx_sha256=file_hash(onnx_path),
        precision=description.get("precision", "unknown"),
        inputs=built.inputs,
        outputs=built.outputs,
        build_seconds=round(seconds, 3),
        size_bytes=len(built.plan),
    )
    write_json(sidecar_path(plan_path), header("engine", **report.to_dict(), onnx=description))
    return report


@dataclass(frozen=True)
class BuiltPlan:
    """An engine in memory.

    Attributes:
        plan: The serialised engine.
        inputs: Name to shape and data type.
        outputs: Name to shape and data type.
        target: GPU or compute capability that the engine runs on.
    """

    plan: bytes
    inputs: dict[str, str]
    outputs: dict[str, str]
    target: str


def build_plan(
    model: bytes, name: str, *, flavour: str | None = None, timing_cache: Path | None = None
) -> BuiltPlan:
    """Build an engine in memory.

    Args:
        model: A serialised ONNX model.
        name: What the model is called in errors.
        flavour: ``tensorrt`` or ``tensorrt_rtx``; by default the first that is installed.
        timing_cache: File of tactic timings that several builds share; made if there is none. What
            TensorRT timed once it does not time again, so equal layers get equal tactics. Unused by
            TensorRT-RTX, which chooses tactics when the engine runs.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons.
    """
    trt = load_tensorrt(flavour)
    logger = logger_of(trt)
    logger.errors.clear()
    builder = _builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model, name)
    config = builder.create_builder_config()
    target = _set_target(trt, config)
    if trt.__name__ == "tensorrt_rtx":
        timing_cache = None
    if timing_cache:
        config.set_timing_cache(config.create_timing_cache(_read_cache(timing_cache)), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # TensorRT does not raise
        raise _refused(trt, f"does not build {name}", logger.errors)
    if timing_cache:
        _share_cache(config, timing_cache)
    inputs = _shapes([network.get_input(i) for i in range(network.num_inputs)])
    outputs = _shapes([network.get_output(i) for i in range(network.num_outputs)])
    return BuiltPlan(bytes(plan), inputs, outputs, target)


def _read_cache(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _share_cache(config: Any, path: Path) -> None:
    """Add what this build timed to the file, which other processes may have changed meanwhile."""
    own = config.get_timing_cache()
    with FileLock(f"{path}.lock"):
        shared = config.create_timing_cache(_read_cache(path))
        shared.combine(own, False)
        with atomic_path(path) as temporary:
            temporary.write_bytes(bytes(shared.serialize()))


def load_tensorrt(flavour: str | None = None) -> Any:
    """Import TensorRT, or else TensorRT-RTX.

    Args:
        flavour: The only one that will do.

    Raises:
        AdaptError: If it is not installed.
    """
    for name in FLAVOURS if flavour is None else (flavour,):
        module = _import(name)
        if module is not None:
            return module
    missing = "neither tensorrt nor tensorrt_rtx" if flavour is None else f"no {flavour}"
    raise AdaptError(f"{missing} is installed; {_INSTALL}")


def _import(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, its libraries are not
        return None


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # TypeError: the C++ constructor returned nothing
        raise _refused(trt, "does not start (it needs an NVIDIA GPU)", logger.errors) from error


def _parse(trt: Any, network: Any, model: bytes, name: str) -> None:
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{error.node_operator()} {error.desc()}" for error in errors]
        raise _refused(trt, f"does not read {name}", reasons)


def _set_target(trt: Any, config: Any) -> str:
    """Choose the GPU to build for and return its name.

    TensorRT builds for the GPU it runs on. TensorRT-RTX also builds without one; then the engine
    is for compute capability 8.0 (A100).
    """
    on_gpu = torch.cuda.is_available()
    if trt.__name__ == "tensorrt_rtx" and not on_gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM80, 0)
        return "SM80"
    return torch.cuda.get_device_name() if on_gpu else "unknown"


def _shapes(tensors: Sequence[Any]) -> dict[str, str]:
    return {tensor.name: f"{tensor.dtype.name.lower()}{list(tensor.shape)}" for tensor in tensors}


def _refused(trt: Any, what: str, reasons: Sequence[str]) -> AdaptError:
    told = "; ".join(dict.fromkeys(reason.strip() for reason in reasons)) or "it gave no reason"
    return AdaptError(
        f"{trt.__name__} {trt.__version__} {what} ({told}); export with tail 'tensor-nms' and an "
        "opset it reads, or update it"
    )


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the one logger that TensorRT allows per process; it remembers errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what explains a failure, prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)

    return Logger()
