"""In which precision does a graph compute?

TensorRT builds strongly typed networks: the precision is that of the ONNX file. An ``fp16`` file
has a body (backbone, pyramid, heads) in half precision, an ``int8`` file has pairs of
QuantizeLinear and DequantizeLinear (Q/DQ) in an fp32 graph. What follows the heads is always fp32.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from adapt.runtime import Precision

FloatPrecision = Literal["fp32", "fp16"]  # what a network is exported in; int8 is made from fp32
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

SCALE = 0.05  # of activations nobody calibrated: int8 then spans -6.35 to 6.35, more than ReLU6
LARGEST = 127  # of symmetric int8; -128 has no positive counterpart
Steps = dict[str, NDArray[np.float32]]  # tensor name to what one step of int8 is worth


def with_qdq(
    model: onnx.ModelProto,
    scales: float | Mapping[str, float] = SCALE,
    kept: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a copy of an fp32 model whose convolutions compute in int8.

    Quantisation is symmetric: activations per tensor, weights per output channel, biases not at
    all. Each tensor that a convolution reads gets one Q/DQ pair, through which all its readers
    read it, and nothing else gets one. So TensorRT's guide wants it:

    * Convolution, Clip and the Q of the next convolution fuse into one kernel from int8 to int8;
      a pair between convolution and Clip would split it.
    * A residual addition reads the pair that feeds the first convolution of its block. With that
      operand in int8, it fuses into the block's last convolution; a pair on its other operand
      would separate the two. The same holds for the additions of the feature pyramid.

    The tail has no convolutions and stays fp32. TensorRT-RTX 1.7 writes what a convolution computes
    as fp32 and requantises it in a kernel of its own, wherever the pairs are; with these it needs
    no further one. ONNX Runtime's CPU provider computes most of these convolutions in fp32, so int8
    is slower than fp32 there: its integer kernels absorb a Clip only if activations have a zero
    point, which TensorRT refuses.

    Latency does not depend on the scales; :class:`export.quantize.Quantizer` calibrates them.

    Args:
        model: An fp32 model of a unit, the rest of a detector or a whole detector.
        scales: What one step of int8 is worth: of every activation, or by tensor name.
        kept: Weights whose convolutions stay in fp32.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    convs = [node for node in _convolutions(graph) if node.input[1] not in kept]
    steps = _weight_steps(graph, {conv.input[1] for conv in convs})
    for name in dict.fromkeys(conv.input[0] for conv in convs):
        step = scales[name] if isinstance(scales, Mapping) else scales
        steps[name] = np.array(step, np.float32)
    pairs = {name: _pair(name, step) for name, step in steps.items()}
    _insert_pairs(graph, pairs, kept)
    graph.initializer.extend(tensor for item in steps.items() for tensor in _parameters(*item))
    return quantised


def conv_weights(model: onnx.ModelProto) -> list[str]:
    """Return the names of the weights of all convolutions, in the order of the data flow."""
    return list(dict.fromkeys(node.input[1] for node in _convolutions(model.graph)))


def _convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == "Conv"]


def _weight_steps(graph: onnx.GraphProto, names: set[str]) -> Steps:
    """Return ``Tensor[C_out]`` per weight ``Tensor[C_out, C_in, k, k]``."""
    steps = {}
    for tensor in graph.initializer:
        if tensor.name in names:
            largest = np.abs(numpy_helper.to_array(tensor)).max((1, 2, 3))
            steps[tensor.name] = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    assert len(steps) == len(names), "the weights of a convolution are no constant"
    return steps


def _insert_pairs(
    graph: onnx.GraphProto, pairs: Mapping[str, Iterable[onnx.NodeProto]], kept: Collection[str]
) -> None:
    """Put each pair behind the node that computes its tensor and redirect the tensor's readers."""
    computed = {name for node in graph.node for name in node.output}
    nodes = [node for name, pair in pairs.items() if name not in computed for node in pair]
    for node in graph.node:
        stays = node.op_type == "Conv" and node.input[1] in kept
        for index, name in enumerate(node.input):
            if name in pairs and not stays:
                node.input[index] = _dequantised(name)
        nodes.append(node)
        nodes += [part for name in node.output for part in pairs.get(name, ())]
    graph.ClearField("node")
    graph.node.extend(nodes)


# Named as ONNX Runtime names them.
def _pair(name: str, step: NDArray[np.float32]) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    parameters = f"{name}_scale", f"{name}_zero_point"
    between = f"{name}_QuantizeLinear_Output"
    axis: dict[str, Any] = {"axis": 0} if step.ndim else {}
    return (
        helper.make_node("QuantizeLinear", [name, *parameters], [between], **axis),
        helper.make_node("DequantizeLinear", [between, *parameters], [_dequantised(name)], **axis),
    )


def _parameters(name: str, step: NDArray[np.float32]) -> tuple[onnx.TensorProto, onnx.TensorProto]:
    zero_point = np.zeros(step.shape, np.int8)
    return (
        numpy_helper.from_array(step, f"{name}_scale"),
        numpy_helper.from_array(zero_point, f"{name}_zero_point"),
    )


def _dequantised(name: str) -> str:
    return f"{name}_DequantizeLinear_Output"
