"""How does an ONNX file become a TensorRT engine file, and what is recorded of the build?

An engine file has the suffix ``.plan``: TensorRT calls a serialised engine a plan. Every name used
of TensorRT is the same in TensorRT 10, TensorRT 11 and TensorRT-RTX. The network is strongly typed,
so the precision of the engine is that of the ONNX file. This module parses the model, explains
failures and checks what was built; :mod:`export.engine.configure` configures and builds.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adapt.artifacts import atomic_path, file_hash, header, make_place, write_json
from adapt.errors import AdaptError
from export.engine.configure import BuildOptions, Shape, build
from export.engine.installed import builder_of, load_tensorrt, logger_of, refused
from export.engine.layers import check_precision, engine_layers, has_precision, network_layers
from export.engine.timing_cache import timing_cache
from export.graph.onnx_file import description_of, load_onnx


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
        layers_of: Whose layers: ``engine``, as its inspector tells, or ``network``, as TensorRT
            parsed it, where no GPU can load the engine or its layers are fused into one.
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
        plan_path: Engine file to write.
        options: By default those of the first TensorRT that is installed.
        name: What the ONNX file is called in errors; its path by default.

    Returns:
        What was built.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons, if
            the engine lacks the precision of the file, or a file cannot be read or written.
    """
    options = options or BuildOptions()
    make_place(plan_path)  # an unwritable folder must not cost the minutes of the builder
    description = description_of(load_onnx(onnx_path)) or {}
    precision = description.get("precision", "unknown")
    if description.get("int8_for") == "ort-cpu":
        raise AdaptError(
            f"{name or onnx_path} is int8 for ONNX Runtime, with zero points, which TensorRT "
            "refuses; export it with --trt, or with --int8-for tensorrt"
        )
    trt = load_tensorrt(options.flavour)
    name = name or str(onnx_path)
    start = time.perf_counter()
    built = build_plan(onnx_path.read_bytes(), name, options)
    seconds = time.perf_counter() - start
    # The network is strongly typed: its types are the engine's, whatever the inspector tells.
    check_precision(built.layers, precision, name)
    inspected = engine_layers(trt, built.plan, logger_of(trt))
    if inspected and not has_precision(inspected, precision):
        inspected = None  # one node of fused layers, of which it tells the ends only
    layers = inspected or built.layers
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
        timing_cache_sha256=_timing_cache_hash(trt, options),
        build_seconds=round(seconds, 3),
        size_bytes=len(built.plan),
        warnings=built.warnings,
    )
    with atomic_path(plan_path) as temporary:
        temporary.write_bytes(built.plan)
        write_json(sidecar_path(plan_path), header("engine", **report.to_dict(), onnx=description))
    return report


def _timing_cache_hash(trt: Any, options: BuildOptions) -> str | None:
    if options.timing_cache is None or trt.__name__ == "tensorrt_rtx":
        return None
    timing_cache(trt, options.timing_cache).save()
    return file_hash(options.timing_cache)


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
        options: By default those of the first TensorRT that is installed.

    Raises:
        AdaptError: If TensorRT is missing or refuses the network, with TensorRT's own reasons.
    """
    options = options or BuildOptions()
    trt = load_tensorrt(options.flavour)
    logger = logger_of(trt)
    logger.clear()
    builder = builder_of(trt)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, model, name)
    profile = _profile(network, model, options)
    plan = build(trt, builder, network, profile, options)
    if plan is None:
        remedy = _build_remedy(logger.errors, model)
        raise refused(trt, f"does not build {name}", logger.errors, remedy)
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


def _parse(trt: Any, network: Any, model: bytes, name: str) -> None:
    parser = trt.OnnxParser(network, logger_of(trt))
    if not parser.parse(model):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors]
        raise refused(trt, f"does not read {name}", reasons, "export it again, or update TensorRT")


def _profile(network: Any, model: bytes, options: BuildOptions) -> dict[str, list[Shape]]:
    """Return smallest, tuned and largest shape of every input whose batch is free."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    free = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    if not free:
        return {}
    import onnx

    largest = (description_of(onnx.load_from_string(model)) or {}).get("batch")
    if largest is None or any(-1 in shape[1:] for shape in free.values()):
        raise AdaptError(
            f"inputs {', '.join(free)} have free sizes other than the batch of `adapt export`; "
            "export with fixed sizes"
        )
    tuned = options.tuned_batch or largest
    if not 1 <= tuned <= largest:
        raise AdaptError(f"the engine is tuned for 1 to {largest} images, got {tuned}")
    return {name: [(n, *shape[1:]) for n in (1, tuned, largest)] for name, shape in free.items()}


def _target(trt: Any) -> str:
    """Return the GPU that engines are built for: the one here, or an A100 without one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "SM80" if trt.__name__ == "tensorrt_rtx" else "unknown"


def _shapes(tensors: Sequence[Any]) -> dict[str, str]:
    return {tensor.name: f"{tensor.dtype.name.lower()}{list(tensor.shape)}" for tensor in tensors}


def _build_remedy(reasons: Sequence[str], model: bytes) -> str:
    """Name the node of the model that TensorRT's errors mention, or say what else may help."""
    import onnx

    text, nodes = "; ".join(reasons), onnx.load_from_string(model).graph.node
    mentioned = [node for node in nodes if node.name and node.name in text]
    if not mentioned:
        return "give it more memory, or update TensorRT"
    # A name may begin as another does: a.0/Conv is in a.0/Conv_2. The longest is the one meant.
    node = max(mentioned, key=lambda node: len(node.name))
    other = "; export with tail 'tensor-nms'" if node.op_type == "NonMaxSuppression" else ""
    return f"this concerns {node.name}{other}"
