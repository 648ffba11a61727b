"""What makes an ONNX graph compute in int8 in ONNX Runtime on a processor?

Its integer kernels take unsigned activations with a zero point. An activation function that only
cuts off (Clip, Relu) is then part of the range of the convolution before it, so that a feature map
stays in integers from one convolution to the next. TensorRT wants symmetric pairs instead, see
:func:`export.graph.precision.with_qdq`; with those ONNX Runtime computes in fp32, between
conversions.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx

from adapt.machine import int8_saturates

# What has integer kernels and stands between convolutions.
OPERATORS = ("Conv", "Clip", "Relu", "Add", "Resize", "MaxPool")
UNKNOWN = (-4.0, 4.0)  # range of a tensor without calibration: latency does not depend on it
CUT = (0.0, 6.0)  # of one that was cut off
Ranges = Mapping[str, tuple[float, float]]


def with_zero_points(
    model: onnx.ModelProto,
    ranges: Ranges | None = None,
    kept: Collection[str] = (),
    *,
    between: bool = True,
) -> onnx.ModelProto:
    """Return a copy of an fp32 model that computes in int8 up to its last convolutions.

    Activations are ``uint8`` with one scale and zero point per tensor, weights ``int8`` with one
    scale per output channel. Where this processor's sums of two products would overflow, weights
    have 7 bits.

    Args:
        model: Of a unit, the rest of a detector or a whole detector.
        ranges: Smallest and largest value of every tensor that an operator of :data:`OPERATORS`
            reads or writes; any ones without.
        kept: Weights whose convolutions are not quantised.
        between: Whether what stands between convolutions is.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    inferred = onnx.shape_inference.infer_shapes(model)
    for number, node in enumerate(inferred.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    found = ranges or _any_ranges(inferred.graph)
    data = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in found.items()
    }
    quantizer = QDQQuantizer(
        inferred,
        per_channel=True,
        reduce_range=int8_saturates(),
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=[
            node.name
            for node in quantisable(inferred.graph, kept)
            if between or node.op_type == "Conv"
        ],
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


def quantisable(graph: onnx.GraphProto, kept: Collection[str] = ()) -> list[onnx.NodeProto]:
    """Return the nodes that compute in int8: convolutions, and what stands between them.

    Args:
        graph: In the order of the data flow, as ONNX demands.
        kept: Weights whose convolutions do not.
    """
    after = _reached(list(graph.node), forwards=True)
    before = _reached(list(graph.node)[::-1], forwards=False)
    return [
        node
        for node in graph.node
        if (node.op_type == "Conv" and node.input[1] not in kept)
        or (node.op_type in OPERATORS[1:] and node.name in after & before)
    ]


def _reached(nodes: list[onnx.NodeProto], *, forwards: bool) -> set[str]:
    """Return the names of the nodes that follow a convolution, or of those that one follows."""
    tensors, names = set[str](), set[str]()
    for node in nodes:
        read, written = (node.input, node.output) if forwards else (node.output, node.input)
        if tensors.intersection(read):
            names.add(node.name)
        if node.op_type == "Conv" or node.name in names:
            tensors.update(written)
    return names


def _any_ranges(graph: onnx.GraphProto) -> dict[str, tuple[float, float]]:
    """Return ranges with which everything that can fuse does."""
    ranges: dict[str, tuple[float, float]] = {}
    for node in graph.node:
        if node.op_type in OPERATORS:
            ranges |= {name: ranges.get(name, UNKNOWN) for name in node.input}
            ranges[node.output[0]] = CUT if node.op_type in ("Clip", "Relu") else UNKNOWN
    return ranges


def calibrated_ranges(data: Any) -> dict[str, tuple[float, float]]:
    """Return the smallest and the largest value of every tensor that was calibrated.

    Args:
        data: What ONNX Runtime's calibrator computed.
    """
    return {
        name: (float(np.min(low)), float(np.max(high)))
        for name in data.keys()  # noqa: SIM118
        for low, high in [data[name].range_value]
    }
