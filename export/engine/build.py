"""How does ONNX become a TensorRT engine?

Every name used of TensorRT is the same in TensorRT 10, TensorRT 11 and TensorRT-RTX; the network
is strongly typed, so the precision of the engine is that of the ONNX file. NVIDIA's Polygraphy
configures and builds; reading the model, with the reasons of a failure, and checking what was
built is ours.
"""

import functools
import importlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapt.artifacts import atomic_path, file_hash, header, make_folder, write_json
from adapt.errors import AdaptError
from export.engine.builder import INSTALL, BuildOptions, Shape, build
from export.engine.layers import check_precision, engine_layers, network_layers
from export.graph.onnx_file import description_of, load_onnx

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # in order of preference


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
        profile: With a dynamic batch, smallest, tuned and largest shape by input.
        layers: Share of the layers by data type.
        layers_of: ``engine`` as its inspector tells, or ``network``: what TensorRT was given, where
            no GPU is at hand to load the engine.
        workspace_mb: See :class:`BuildOptions`.
        level: See :class:`BuildOptions`.
        timing_cache_sha256: Hash of the timing cache after the build.
        build_seconds: Wall time of parsing and building.
        size_bytes: Size of the engine.
        warnings: What TensorRT warned of.
    """

    flavour: str
    tensorrt_version: str
    target: str
    onnx_sha256: str
    precision: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    profile: dict[str, list[Shape]]
    layers: dict[str, float]
    layers_of: str
    workspace_mb: int | None
    level: int | None
    timing_cache_sha256: str | None
    build_seconds: float
    size_bytes: int
    warnings: list[str]

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


def build_engine(
    onnx_path: Path,
    plan_path: Path,
    options: BuildOptions | None = None,
    *,
    name: str | None = None,
) -> EngineReport:
    """Build an engine and write it with a JSON description (``<plan>.json``) beside it.

    Args:
        onnx_path: File that ``adapt export`` wrote.
        plan_path: Engine to write.
        options: How.
        name: What the ONNX file is called in errors; its path by default.

    Returns:
        What was built.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons, if
            the engine lacks the precision of the file, or a file cannot be read or written.
    """
    options = options or BuildOptions()
    make_folder(plan_path.parent)  # before the minutes of the builder
    description = description_of(load_onnx(onnx_path)) or {}
    precision = description.get("precision", "unknown")
    trt = load_tensorrt(options.flavour)
    name = name or str(onnx_path)
    start = time.perf_counter()
    built = build_plan(onnx_path.read_bytes(), name, options)
    seconds = time.perf_counter() - start
    inspected = engine_layers(trt, built.plan, logger_of(trt))
    layers = inspected or built.layers
    check_precision(layers, precision, name)
    cache = options.timing_cache if trt.__name__ == "tensorrt" else None
    report = EngineReport(
        flavour=trt.__name__,
        tensorrt_version=trt.__version__,
        target=built.target,
        onnx_sha256=file_hash(onnx_path),
        precision=precision,
        inputs=built.inputs,
        outputs=built.outputs,
        profile=built.profile,
        layers={name: round(share, 4) for name, share in layers.items()},
        layers_of="engine" if inspected else "network",
        workspace_mb=options.workspace_mb,
        level=options.level,
        timing_cache_sha256=file_hash(cache) if cache and cache.is_file() else None,
        build_seconds=round(seconds, 3),
        size_bytes=len(built.plan),
        warnings=built.warnings,
    )
    with atomic_path(plan_path) as temporary:
        temporary.write_bytes(built.plan)
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
        profile: With a dynamic batch, smallest, tuned and largest shape by input.
        layers: Share of the network's layers by data type.
        warnings: What TensorRT warned of.
    """

    plan: bytes
    inputs: dict[str, str]
    outputs: dict[str, str]
    target: str
    profile: dict[str, list[Shape]] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def build_plan(model: bytes, name: str, options: BuildOptions | None = None) -> BuiltPlan:
    """Build an engine in memory.

    Args:
        model: A serialised ONNX model.
        name: What the model is called in errors.
        options: How.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons.
    """
    options = options or BuildOptions()
    trt = load_tensorrt(options.flavour)
    if options.timing_cache:
        make_folder(options.timing_cache.parent)
        if options.timing_cache.is_dir():
            raise AdaptError(f"timing cache {options.timing_cache} is a folder; name a file")
    logger = logger_of(trt)
    logger.clear()
    builder = _builder(trt, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model, name)
    profile = _profile(network, model, options)
    plan = build(trt, builder, network, profile, options)
    if plan is None:
        concerned = _concerned(logger.errors, model)
        raise _refused(trt, f"does not build {name}", logger.errors, concerned)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return BuiltPlan(
        plan=plan,
        inputs=_shapes(inputs),
        outputs=_shapes(outputs),
        target=_target(trt),
        profile=profile,
        layers=network_layers(network),
        warnings=list(dict.fromkeys(logger.warnings)),
    )


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
    if flavour is not None:
        raise AdaptError(f"{flavour} is not installed; {INSTALL[flavour]}")
    raise AdaptError(f"no TensorRT is installed; {' or '.join(INSTALL.values())}")


def check_builder(flavour: str) -> None:
    """Check that a kind of TensorRT can build here.

    Raises:
        AdaptError: If it is not installed or does not start.
    """
    trt = load_tensorrt(flavour)
    _builder(trt, logger_of(trt))


def _import(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):  # OSError: the package is there, its libraries are not
        return None


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # TypeError: the C++ constructor returned nothing
        raise _refused(trt, "does not start", logger.errors, "it needs an NVIDIA GPU") from error


def _parse(trt: Any, network: Any, model: bytes, name: str) -> None:
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors]
        raise _refused(trt, f"does not read {name}", reasons, "export it again, or update TensorRT")


def _profile(network: Any, model: bytes, options: BuildOptions) -> dict[str, list[Shape]]:
    """Return smallest, tuned and largest shape of every input whose batch is free."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    if not free:
        return {}
    import onnx

    most = (description_of(onnx.load_from_string(model)) or {}).get("batch")
    if most is None or any(-1 in shape[1:] for shape in free.values()):
        raise AdaptError(
            f"inputs {', '.join(free)} have free sizes other than the batch of `adapt export`; "
            "export with fixed sizes"
        )
    tuned = options.tuned_batch or most
    if not 1 <= tuned <= most:
        raise AdaptError(f"the engine is tuned for 1 to {most} images, got {tuned}")
    return {name: [(n, *shape[1:]) for n in (1, tuned, most)] for name, shape in free.items()}


def _target(trt: Any) -> str:
    """Return the GPU that is built for.

    TensorRT builds for the GPU it runs on. TensorRT-RTX also builds without one; then the engine
    is for compute capability 8.0 (A100).
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "SM80" if trt.__name__ == "tensorrt_rtx" else "unknown"


def _shapes(tensors: Sequence[Any]) -> dict[str, str]:
    return {tensor.name: f"{tensor.dtype.name.lower()}{list(tensor.shape)}" for tensor in tensors}


def _refused(trt: Any, what: str, reasons: Sequence[str], remedy: str) -> AdaptError:
    told = "; ".join(dict.fromkeys(reason.strip() for reason in reasons)) or "it gave no reason"
    return AdaptError(f"{trt.__name__} {trt.__version__} {what} ({told}); {remedy}")


def _concerned(reasons: Sequence[str], model: bytes) -> str:
    """Say which node of the model errors mention; nodes are named after their modules."""
    import onnx

    told, nodes = "; ".join(reasons), onnx.load_from_string(model).graph.node
    named = [node for node in nodes if node.name and node.name in told]
    if not named:
        return "give it more memory, or update TensorRT"
    node = max(named, key=lambda node: len(node.name))
    other = "; export with tail 'tensor-nms'" if node.op_type == "NonMaxSuppression" else ""
    return f"this concerns {node.name}{other}"


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the one logger that TensorRT allows per process; it keeps errors and warnings."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what explains a failure, prints nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            """Forget what an earlier build said."""
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)

    return Logger()
