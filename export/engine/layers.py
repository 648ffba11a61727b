"""In which precisions do the layers of a TensorRT engine compute?"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from adapt.errors import AdaptError

# A layer counts as the first of these that any of its inputs and outputs has: a convolution that
# reads int8 and writes fp32 computes in int8.
ORDER = ("int8", "fp16", "fp32", "other")
_PATTERNS = {  # in the names that TensorRT's network and inspector give to data types
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(half|fp16|float16)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(float|fp32|float32)\b", re.IGNORECASE),
}


def network_layers(network: Any) -> dict[str, float]:
    """Return the share of layers by data type of a parsed network.

    They are those of the engine: in a strongly typed network, TensorRT may fuse layers but not
    change their types.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return _shares(map(_network_types, layers))


def _network_types(layer: Any) -> list[str]:
    tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
    tensors += [layer.get_output(i) for i in range(layer.num_outputs)]
    return [tensor.dtype.name for tensor in tensors if tensor is not None]


def engine_layers(trt: Any, plan: bytes, logger: Any) -> dict[str, float] | None:
    """Return the share of layers by data type of a built engine, as its inspector tells.

    Returns:
        None if there is no GPU to load the engine, or if the inspector tells no types.

    Raises:
        AdaptError: If the engine does not load on the GPU it was built on.
    """
    if not torch.cuda.is_available():
        return None
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:  # TensorRT does not raise
        reasons = "; ".join(logger.errors) or "it gave no reason"
        raise AdaptError(f"{trt.__name__} built an engine that it does not load here ({reasons})")
    inspector = engine.create_engine_inspector()
    return inspected_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def inspected_layers(text: str) -> dict[str, float] | None:
    """Return the share of layers by data type in an inspector's JSON; None if it tells no types."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    layers = content.get("Layers") if isinstance(content, Mapping) else None
    detailed = [layer for layer in layers or () if isinstance(layer, Mapping)]
    shares = _shares(_inspected_types(layer) for layer in detailed)
    return shares if set(shares) - {"other"} else None


def _inspected_types(entry: Mapping[str, Any]) -> list[str]:
    tensors = [*(entry.get("Inputs") or ()), *(entry.get("Outputs") or ())]
    # TensorRT 11 splits the field Format/Datatype of TensorRT 10 in two.
    names = ("DataType", "Datatype", "Format/Datatype", "Format")
    return [
        next((str(tensor[name]) for name in names if name in tensor), "")
        for tensor in tensors
        if isinstance(tensor, Mapping)
    ]


def _shares(layers: Iterable[Iterable[str]]) -> dict[str, float]:
    counts = Counter(min(map(_kind, types), key=ORDER.index, default="other") for types in layers)
    total = counts.total()
    return {kind: counts[kind] / total for kind in ORDER if counts[kind]}


def _kind(text: str) -> str:
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(text)), "other")


def has_precision(layers: Mapping[str, float], precision: str) -> bool:
    """Whether any layers compute in a precision; every engine has ``fp32`` and ``unknown``."""
    return precision not in ("fp16", "int8") or bool(layers.get(precision))


def check_precision(layers: Mapping[str, float], precision: str, name: str) -> None:
    """Check that layers of an engine compute in the precision of its ONNX file.

    Args:
        layers: Share of layers of the strongly typed network by data type.
        precision: Precision of the ONNX file, or ``unknown``, which every engine has.
        name: The ONNX file, for the error.

    Raises:
        AdaptError: If no layer does.
    """
    if not has_precision(layers, precision):
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in layers.items())
        raise AdaptError(
            f"no layer of the engine of {name} computes in {precision} ({shares}), although the "
            f"file asks for it; export it again with --precision {precision}"
        )
