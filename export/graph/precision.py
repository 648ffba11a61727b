"""What makes an ONNX graph compute in fp16 or int8, and where do the Q/DQ nodes of int8 stand?

TensorRT builds strongly typed networks: the precision is that of the ONNX file. In an ``fp16``
file, backbone, pyramid and heads are in half precision; an ``int8`` file is an fp32 or fp16 graph
with pairs of QuantizeLinear and DequantizeLinear (Q/DQ). What follows the heads is always fp32.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from adapt.runtime import Int8For, Precision

FloatPrecision = Literal["fp32", "fp16"]  # what a network is exported in; int8 is made from it
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SCALE = 0.05  # without calibration: int8 spans -6.35 to 6.35, more than the range of ReLU6
LARGEST = 127  # of symmetric int8; -128 has no positive counterpart
Scales = dict[str, NDArray[Any]]  # by tensor: the value that one step of int8 stands for


def with_qdq(
    model: onnx.ModelProto,
    scales: float | Mapping[str, float] = SCALE,
    kept: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy of an fp32 or fp16 model whose convolutions compute in int8.

    What is between them stays in the precision of the model, as scales do.

    Quantisation is symmetric: activations per tensor, weights per output channel, biases not at
    all. The inputs of convolutions, activations and weights, get one Q/DQ pair each; every node
    that reads such a tensor reads it through the pair. No other tensor gets one. TensorRT's guide
    recommends this:

    * Convolution, Clip and the Q of the next convolution fuse into one kernel from int8 to int8;
      a pair between convolution and Clip would split it.
    * A residual addition reads the pair that feeds the first convolution of its block. With that
      operand in int8, it fuses into the block's last convolution; a pair on its other operand
      would separate the two. The same holds for the additions of the feature pyramid.

    The tail has no convolutions and stays fp32.

    TensorRT-RTX 1.7 writes the output of a convolution in floating point and quantises it again in
    a kernel of its own, wherever the pairs stand; these pairs cost no further kernel. ONNX
    Runtime's CPU provider computes most of these convolutions in fp32: its integer kernels want
    other pairs, which TensorRT refuses; see :mod:`export.graph.zero_points`.

    Latency does not depend on the scales; :class:`export.quantize.Quantizer` calibrates them.

    Args:
        model: Of a unit, the rest of a detector or a whole detector.
        scales: The value that one step of int8 stands for: one for all activations, or by tensor.
        kept: Weights whose convolutions are not quantised.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    convs = [node for node in convolutions(graph) if node.input[1] not in kept]
    by_tensor = _weight_scales(graph, {conv.input[1] for conv in convs})
    for conv in convs:
        name, dtype = conv.input[0], by_tensor[conv.input[1]].dtype
        scale = scales[name] if isinstance(scales, Mapping) else scales
        by_tensor[name] = _scale(np.array(scale), dtype)
    pairs = {name: _pair(name, scale) for name, scale in by_tensor.items()}
    _insert_pairs(graph, pairs, kept)
    graph.initializer.extend(tensor for item in by_tensor.items() for tensor in _parameters(*item))
    return quantised


def conv_weights(model: onnx.ModelProto) -> list[str]:
    """Return the names of the weights of all convolutions, in the order of the data flow."""
    return list(dict.fromkeys(node.input[1] for node in convolutions(model.graph)))


def convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return all convolutions, in the order of the data flow."""
    return [node for node in graph.node if node.op_type == "Conv"]


def _weight_scales(graph: onnx.GraphProto, names: set[str]) -> Scales:
    """Return ``Tensor[C_out]`` per weight ``Tensor[C_out, C_in, k, k]``."""
    scales = {}
    for tensor in graph.initializer:
        if tensor.name in names:
            weight = numpy_helper.to_array(tensor)
            largest = np.abs(weight.astype(np.float32)).max((1, 2, 3))
            scales[tensor.name] = _scale(np.where(largest > 0, largest / LARGEST, 1), weight.dtype)
    assert len(scales) == len(names), "the weights of a convolution are no constant"
    return scales


def _scale(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return scales in the type of what they scale, none of them rounded to 0."""
    scale: NDArray[Any] = np.maximum(values, np.finfo(dtype).smallest_subnormal).astype(dtype)
    return scale


def rest_precision(runtime: str, precision: Precision) -> FloatPrecision:
    """Return what a graph for a runtime computes in where it is not quantised.

    On a GPU feature maps in fp16 are half the bytes of fp32; ONNX Runtime's CPU provider computes
    fp16 in fp32, between casts.
    """
    if precision == "int8":
        return "fp16" if runtime.startswith("tensorrt") else "fp32"
    return precision


def int8_for(runtime: str) -> Int8For:
    """Return for whose integer kernels a runtime's int8 files are quantised."""
    return "ort-cpu" if runtime == "ort-cpu" else "tensorrt"  # with CUDA ONNX Runtime has none


def _insert_pairs(
    graph: onnx.GraphProto, pairs: Mapping[str, Iterable[onnx.NodeProto]], kept: Collection[str]
) -> None:
    """Put each pair behind the node that computes its tensor and redirect the tensor's readers."""
    computed = {name for node in graph.node for name in node.output}
    nodes = [node for name, pair in pairs.items() if name not in computed for node in pair]
    for node in graph.node:
        stays_fp32 = node.op_type == "Conv" and node.input[1] in kept
        for index, name in enumerate(node.input):
            if name in pairs and not stays_fp32:
                node.input[index] = _dequantised(name)
        nodes.append(node)
        nodes += [part for name in node.output for part in pairs.get(name, ())]
    graph.ClearField("node")
    graph.node.extend(nodes)


def _pair(name: str, scale: NDArray[Any]) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    # All names are those that ONNX Runtime's own quantiser gives.
    parameters = f"{name}_scale", f"{name}_zero_point"
    integers = f"{name}_QuantizeLinear_Output"
    axis: dict[str, Any] = {"axis": 0} if scale.ndim else {}
    return (
        helper.make_node("QuantizeLinear", [name, *parameters], [integers], **axis),
        helper.make_node("DequantizeLinear", [integers, *parameters], [_dequantised(name)], **axis),
    )


def _parameters(name: str, scale: NDArray[Any]) -> tuple[onnx.TensorProto, onnx.TensorProto]:
    zero_point = np.zeros(scale.shape, np.int8)
    return (
        numpy_helper.from_array(scale, f"{name}_scale"),
        numpy_helper.from_array(zero_point, f"{name}_zero_point"),
    )


def _dequantised(name: str) -> str:
    return f"{name}_DequantizeLinear_Output"
