"""Which ONNX graph measures a unit?

Written with ``onnx.helper`` in milliseconds what ``torch.onnx`` writes in seconds, node by node as
the exporter does: BatchNorm folded into the convolution, ReLU6 as Clip.
"""

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from adapt.detector import DetectorConfig
from adapt.images import InputSize
from adapt.units import P6, Lateral, MBConvUnit, Rest, Stem, Unit
from export.graph import export_rest

OPSET = 20
IR_VERSION = 10
Array = NDArray[np.float32]


def unit_model(unit: Unit, *, seed: int = 0) -> bytes:
    """Return the serialised fp32 model of a unit, batch 1, with random weights.

    Its input is the unit's (``Tensor[1, c_in, height, width]``), its output the unit's output;
    the rest of the detector has the four inputs that the units before it compute.

    Raises:
        AdaptError: If the input size of a :class:`adapt.units.Rest` is no multiple of 32.
    """
    match unit:
        case Stem():
            return _stem(unit, _Graph(seed))
        case MBConvUnit():
            return _mbconv(unit, _Graph(seed))
        case Lateral():
            return _lateral(unit, _Graph(seed))
        case P6():
            return _p6(unit, _Graph(seed))
        case Rest():
            return _rest(unit)


class _Graph:
    """A chain of layers under construction; ``last`` is the name of the current end."""

    def __init__(self, seed: int) -> None:
        self.last = "input"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def conv(self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        """Append a convolution with bias and "same" padding."""
        fan_in = c_in // groups * kernel**2
        shape = c_out, c_in // groups, kernel, kernel
        weight = self._random.standard_normal(shape, dtype=np.float32)
        weight /= math.sqrt(fan_in)
        bias = self._random.standard_normal(c_out, dtype=np.float32)
        number = len(self.nodes)
        weights = [
            self._constant(f"conv{number}.weight", weight),
            self._constant(f"conv{number}.bias", bias),
        ]
        self._append(
            "Conv",
            *weights,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[(kernel - 1) // 2] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def relu6(self) -> None:
        """Append min(max(x, 0), 6)."""
        if not any(constant.name == "zero" for constant in self.constants):
            self._constant("zero", np.zeros((), np.float32))
            self._constant("six", np.full((), 6.0, np.float32))
        self._append("Clip", "zero", "six")

    def add_input(self) -> None:
        """Append the addition of the graph's input."""
        self._append("Add", "input")

    def model(self, in_shape: list[int], out_shape: list[int]) -> bytes:
        """Return the model that maps ``in_shape`` to ``out_shape``."""
        graph = helper.make_graph(
            self.nodes,
            "unit",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, in_shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, out_shape)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _append(self, op: str, *inputs: str, **attributes: Any) -> None:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *inputs], [output], **attributes))
        self.last = output


def _stem(unit: Stem, graph: _Graph) -> bytes:
    graph.conv(3, unit.c_out, 3, stride=2)
    graph.relu6()
    return graph.model(*_shapes(3, unit.c_out, unit.height, unit.width, stride=2))


def _mbconv(unit: MBConvUnit, graph: _Graph) -> bytes:
    hidden = unit.c_in * unit.expansion
    if unit.expansion != 1:
        graph.conv(unit.c_in, hidden, 1)
        graph.relu6()
    graph.conv(hidden, hidden, unit.kernel, stride=unit.stride, groups=hidden)
    graph.relu6()
    graph.conv(hidden, unit.c_out, 1)
    if unit.residual:
        graph.add_input()
    return graph.model(*_shapes(unit.c_in, unit.c_out, unit.height, unit.width, unit.stride))


def _lateral(unit: Lateral, graph: _Graph) -> bytes:
    graph.conv(unit.c_in, unit.c_out, 1)
    return graph.model(*_shapes(unit.c_in, unit.c_out, unit.height, unit.width))


def _p6(unit: P6, graph: _Graph) -> bytes:
    graph.conv(unit.c_in, unit.c_out, 3, stride=2)
    return graph.model(*_shapes(unit.c_in, unit.c_out, unit.height, unit.width, stride=2))


def _shapes(
    c_in: int, c_out: int, height: int, width: int, stride: int = 1
) -> tuple[list[int], list[int]]:
    return [1, c_in, height, width], [1, c_out, -(-height // stride), -(-width // stride)]


def _rest(unit: Rest) -> bytes:
    fields = asdict(unit)
    size = InputSize(fields.pop("height"), fields.pop("width"))
    with tempfile.TemporaryDirectory() as folder:
        return export_rest(DetectorConfig(**fields), size, Path(folder, "rest.onnx")).read_bytes()


def random_inputs(model: bytes, *, seed: int = 0) -> dict[str, Array]:
    """Return normally distributed values for every input of a model with fixed shapes."""
    random = np.random.default_rng(seed)
    inputs = {}
    for value in onnx.load_from_string(model).graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        inputs[value.name] = random.standard_normal(shape, dtype=np.float32)
    return inputs
