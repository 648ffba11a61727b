"""Which ONNX graph measures a unit, or a whole detector?

Written with ``onnx.helper`` in milliseconds what ``torch.onnx`` writes in seconds, node by node as
the exporter does: BatchNorm folded into the convolution, ReLU6 as Clip.

A unit stands between two light convolutions. Alone, its input and output would be in the plain
layout of the graph's ends, and a runtime that blocks channels (ONNX Runtime) or packs them
(TensorRT) would pay for conversions that no network contains. What the two cost is measured too
(:class:`adapt.cost.units.Boundary`) and subtracted when a table is read.

In fp16, light convolutions and their inputs are half too, images and detections never; in int8 all
inputs and outputs are float32.
"""

import functools
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from adapt.architecture import Architecture
from adapt.cost.units import (
    P6,
    Boundary,
    Lateral,
    MBConvUnit,
    Measurable,
    Rest,
    Stem,
    detector_units,
    halve,
    pyramid_sizes,
    rest_unit,
)
from adapt.data.images import InputSize
from adapt.detector.retinanet import IMAGE_MEAN, IMAGE_STD, DetectorConfig
from adapt.runtime import Precision, Tail
from export.graph.detector import export_rest
from export.graph.onnx_file import OPSET
from export.graph.options import DETECTIONS, REST_INPUTS
from export.graph.precision import FloatPrecision, with_qdq

IR_VERSION = 10
LIGHT = 4  # channels outside of the two light convolutions
Array = NDArray[Any]


def unit_model(
    unit: Measurable,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    tail: Tail = "tensor-nms",
    seed: int = 0,
) -> bytes:
    """Return the serialised model that measures a unit, with random weights.

    Its inputs are ``Tensor[batch, 4, H, W]``, one per feature map that the unit reads, or the image
    ``Tensor[batch, 3, H, W]``; its output is ``Tensor[batch, 4, H', W']``, or what the detector
    detects. Inputs and outputs are float32; only in fp16 the four-channel ones are float16.

    Args:
        unit: What to measure.
        batch: Images per inference.
        precision: Of the unit and the light convolutions; all after a detector's heads is fp32.
        tail: How the rest of a detector ends.
        seed: Seed of the weights.

    Raises:
        AdaptError: If the input size of a :class:`adapt.cost.units.Rest` is no multiple of 32.
    """
    graph = _Graph(batch, precision, seed)
    match unit:
        case Rest():
            for name, level in zip(REST_INPUTS, _rest_levels(unit), strict=True):
                graph.light_input(f"light_{name}", unit.fpn_width, level, output=name)
            return _serialised(_with_rest(graph, unit, tail), precision)
        case Stem():
            graph.image_input(unit.height, unit.width)
        case Boundary():
            graph.light_input("input", unit.channels, (unit.height, unit.width))
        case _:
            graph.light_input("input", unit.c_in, (unit.height, unit.width))
    _append(graph, unit)
    graph.conv(LIGHT, 1)
    return _serialised(graph.model([graph.last]), precision)


def detector_model(
    network: Architecture,
    detector: DetectorConfig,
    size: InputSize,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    tail: Tail = "tensor-nms",
    seed: int = 0,
) -> bytes:
    """Return the serialised model of a whole detector with random weights.

    The graph that ``adapt export`` writes, without the seconds that its exporter takes: from
    float32 images ``Tensor[batch, 3, H, W]`` to detections, see
    :class:`export.graph.detector.Postprocess`.

    Args:
        network: Architecture of the backbone.
        detector: The detector around it.
        size: Letterbox of the input.
        batch: Images per inference.
        precision: Of backbone, pyramid and heads; all after them is fp32.
        tail: How the graph ends, ``tensor-nms`` or ``onnx-nms``.
        seed: Seed of the weights.

    Raises:
        AdaptError: If the input size is no multiple of 32.
    """
    graph = _Graph(batch, precision, seed)
    graph.image_input(size.height, size.width)
    units = list(detector_units(network, detector, size))
    ends: list[str] = []
    depths = [2]  # units up to the end of each block, stem and first block included
    for shapes in network.layers():
        depths.append(depths[-1] + len(shapes))
    for unit in units[: depths[-1]]:
        _append(graph, unit)
        ends.append(graph.last)
    tapped = [ends[depths[tap] - 1] for tap in network.taps]
    for name, unit, end in zip(
        REST_INPUTS, units[depths[-1] : -1], [*tapped, tapped[-1]], strict=True
    ):
        graph.last = end
        _append(graph, unit, output=name)
    return _serialised(_with_rest(graph, rest_unit(detector, size), tail), precision)


def _serialised(model: onnx.ModelProto, precision: Precision) -> bytes:
    model = with_qdq(model) if precision == "int8" else model
    return model.SerializeToString()  # type: ignore[no-any-return]


class _Graph:
    """Layers under construction; ``last`` is the name of the current end."""

    def __init__(self, batch: int, precision: Precision, seed: int) -> None:
        self.last = ""
        self.batch = batch
        # int8 is made from the finished fp32 graph.
        self.precision: FloatPrecision = "fp16" if precision == "fp16" else "fp32"
        self._dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._shapes: dict[str, tuple[int, int, int]] = {}  # (C, H, W) of every feature map
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._random = np.random.default_rng(seed)

    def image_input(self, height: int, width: int) -> None:
        """Begin with float32 images and their normalisation."""
        self._input("images", (3, height, width), np.dtype(np.float32))
        for op, name, values in (("Sub", "unit.mean", IMAGE_MEAN), ("Div", "unit.std", IMAGE_STD)):
            self._constant(name, np.array(values, np.float32).reshape(1, 3, 1, 1))
            self._append(op, name)
        if self.precision == "fp16":
            self._append("Cast", to=onnx.TensorProto.FLOAT16)

    def light_input(
        self, name: str, channels: int, size: tuple[int, int], output: str = ""
    ) -> None:
        """Begin with a light convolution that computes a feature map."""
        self._input(name, (LIGHT, *size), self._dtype)
        self.conv(channels, 1, output=output)

    def conv(
        self, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, output: str = ""
    ) -> None:
        """Append a convolution with bias and "same" padding."""
        c_in, *size = self._shapes[self.last]
        height, width = size if stride == 1 else map(halve, size)
        fan_in = c_in // groups * kernel**2
        number = len(self._nodes)
        weight = c_out, c_in // groups, kernel, kernel
        self._append(
            "Conv",
            self._random_constant(f"unit.conv{number}.weight", weight, 1 / math.sqrt(fan_in)),
            self._random_constant(f"unit.conv{number}.bias", (c_out,), 1.0),
            output=output,
            shape=(c_out, height, width),
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[(kernel - 1) // 2] * 4,
            dilations=[1, 1],
            group=groups,
        )

    def relu6(self) -> None:
        """Append min(max(x, 0), 6)."""
        zero = self._constant("unit.zero", np.zeros((), self._dtype))
        self._append("Clip", zero, self._constant("unit.six", np.full((), 6.0, self._dtype)))

    def add_to(self, earlier: str) -> None:
        """Append the addition to an earlier feature map."""
        branch, self.last = self.last, earlier
        self._append("Add", branch)

    def model(self, outputs: list[str]) -> onnx.ModelProto:
        """Return the model that computes these feature maps."""
        graph = helper.make_graph(
            self._nodes,
            "unit",
            self._inputs,
            [self._value_info(name, self._dtype) for name in outputs],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _input(self, name: str, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self._shapes[name] = shape
        self._inputs.append(self._value_info(name, dtype))
        self.last = name

    def _value_info(self, name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return helper.make_tensor_value_info(name, kind, [self.batch, *self._shapes[name]])

    def _random_constant(self, name: str, shape: tuple[int, ...], std: float) -> str:
        # Uniform values: normal ones would take most of the time it takes to write a graph.
        values = self._random.random(shape, dtype=np.float32) - np.float32(0.5)
        return self._constant(name, (values * np.float32(math.sqrt(12) * std)).astype(self._dtype))

    def _constant(self, name: str, value: Array) -> str:
        self._constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def _append(
        self,
        op: str,
        *inputs: str,
        output: str = "",
        shape: tuple[int, int, int] | None = None,
        **attributes: Any,
    ) -> None:
        output = output or f"unit.{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, [self.last, *inputs], [output], **attributes))
        self._shapes[output] = shape or self._shapes[self.last]
        self.last = output


def _append(graph: _Graph, unit: Measurable, output: str = "") -> None:
    """Append the layers of a unit."""
    match unit:
        case Stem():
            graph.conv(unit.c_out, 3, stride=2)
            graph.relu6()
        case MBConvUnit():
            _mbconv(graph, unit)
        case Lateral():
            graph.conv(unit.c_out, 1, output=output)
        case P6():
            graph.conv(unit.c_out, 3, stride=2, output=output)
        case Boundary():
            pass
        case Rest():
            raise AssertionError("the rest of the detector is no chain of layers")


def _mbconv(graph: _Graph, unit: MBConvUnit) -> None:
    start, hidden = graph.last, unit.c_in * unit.expansion
    if unit.expansion != 1:
        graph.conv(hidden, 1)
        graph.relu6()
    graph.conv(hidden, unit.kernel, stride=unit.stride, groups=hidden)
    graph.relu6()
    graph.conv(unit.c_out, 1)
    if unit.residual:
        graph.add_to(start)


def _rest_levels(unit: Rest) -> list[tuple[int, int]]:
    return pyramid_sizes(unit.height, unit.width)[: len(REST_INPUTS)]


def _with_rest(front: _Graph, unit: Rest, tail: Tail) -> onnx.ModelProto:
    """Return a model that continues ``front`` with the rest of the detector."""
    rest = _rest(unit, front.batch, front.precision, tail)
    joined = onnx.compose.merge_models(
        front.model(list(REST_INPUTS)),
        onnx.load_from_string(rest),
        io_map=[(name, name) for name in REST_INPUTS],
        outputs=list(DETECTIONS),
    )
    joined.ClearField("metadata_props")  # they describe the rest alone
    del joined.opset_import[1:]  # the same one from both
    return joined


@functools.lru_cache(maxsize=4)  # exporting takes seconds, and whole detectors share their rest
def _rest(unit: Rest, batch: int, precision: FloatPrecision, tail: Tail) -> bytes:
    fields = asdict(unit)
    size = InputSize(fields.pop("height"), fields.pop("width"))
    detector = DetectorConfig(**fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rest.onnx")
        how: dict[str, Any] = {"batch": batch, "precision": precision, "tail": tail}
        return export_rest(detector, size, path, **how).read_bytes()


def random_inputs(model: bytes, *, seed: int = 0) -> dict[str, Array]:
    """Return normally distributed values for every input of a model with fixed shapes."""
    random = np.random.default_rng(seed)
    inputs = {}
    for value in onnx.load_from_string(model).graph.input:
        kind = value.type.tensor_type
        shape = [dimension.dim_value for dimension in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        inputs[value.name] = random.standard_normal(shape, dtype=np.float32).astype(dtype)
    return inputs
