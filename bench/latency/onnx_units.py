"""Which ONNX graph is run to measure a unit, or a whole detector?

The graphs equal those of ``torch.onnx`` node by node (BatchNorm is folded into the convolution,
ReLU6 is a Clip), but ``onnx.helper`` writes them in milliseconds where the exporter
takes seconds.

A unit is measured between two light convolutions of few channels. By itself it would read and write
the plain layout that the ends of a graph have, and a runtime that blocks channels (ONNX Runtime) or
packs them (TensorRT) would add layout conversions that no network contains. The two light
convolutions are measured without a unit too (:class:`adapt.cost.units.Boundary`), and their latency
is subtracted when a cost table is read.

TensorRT makes a convolution of few input channels a fused pointwise kernel, which may swallow what
stands beside it. Its light convolutions have more channels (:data:`TENSORRT_LIGHT`).

In fp16 the light convolutions and their inputs are float16 too; images and detections are float32.
In int8 they are what the rest of the graph is in.
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

from adapt.cost.units import (
    P6,
    BottleneckUnit,
    Boundary,
    Lateral,
    MBConvUnit,
    Measurable,
    Rest,
    Stem,
    detector_units,
    fixed_units,
    halve,
    rest_unit,
)
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD
from adapt.runtime import Int8For, Precision, Tail
from adapt.traits import Activation
from bench.latency.subject import Subject, WholeDetector
from export.graph.onnx_file import OPSET
from export.graph.options import DETECTIONS, rest_inputs
from export.graph.precision import FloatPrecision, with_qdq
from export.graph.rest import export_rest
from export.graph.zero_points import with_zero_points

IR_VERSION = 10
LIGHT = 4  # input channels of the first light convolution, output channels of the second
# By the names of kernels in engines of TensorRT-RTX 1.7, fp16 and fp32: with 4 the first light
# convolution is a pointwise kernel, with 8 the output is moved once more, with 16 neither.
TENSORRT_LIGHT = 16
Array = NDArray[Any]


def onnx_model(
    subject: Subject,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    rest: FloatPrecision = "fp32",
    tail: Tail = "tensor-nms",
    light: int = LIGHT,
    library: Int8For = "tensorrt",
) -> bytes:
    """Return the serialised model that measures a unit or a detector, with random weights.

    Args:
        subject: What to measure.
        batch: Images per inference.
        precision: Of all layers up to the detector's heads; what follows them is fp32.
        rest: In int8, of all that is not quantised.
        tail: How a detector ends.
        light: Channels of the light convolutions around a unit.
        library: Whose integer kernels compute int8.
    """
    how: dict[str, Any] = {"batch": batch, "precision": precision, "rest": rest, "tail": tail}
    if isinstance(subject, WholeDetector):
        return detector_model(subject, **how, library=library)
    return unit_model(subject, **how, light=light, library=library)


def unit_model(
    unit: Measurable,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    rest: FloatPrecision = "fp32",
    tail: Tail = "tensor-nms",
    light: int = LIGHT,
    seed: int = 0,
    library: Int8For = "tensorrt",
) -> bytes:
    """Return the serialised model that measures a unit, with random weights.

    Its inputs are ``Tensor[batch, light, H, W]``, one per feature map that the unit reads, or the
    image ``Tensor[batch, 3, H, W]``; its output is ``Tensor[batch, light, H', W']``, or what the
    detector detects. Inputs and outputs are float32; only in fp16, and in int8 whose rest is fp16,
    the light ones are float16.

    Args:
        unit: What to measure.
        batch: Images per inference.
        precision: Of the unit and the light convolutions; what follows a detector's heads is fp32.
        rest: In int8, of all that is not quantised.
        tail: How the rest of a detector ends.
        light: Channels of the light convolutions.
        seed: Seed of the weights.
        library: Whose integer kernels compute int8.

    Raises:
        AdaptError: If the input size of a :class:`adapt.cost.units.Rest` is no multiple of 32.
    """
    graph = _Graph(batch, rest if precision == "int8" else precision, seed, light)
    match unit:
        case Rest():
            for name, level in zip(rest_inputs(unit.finest_level), unit.reads, strict=True):
                graph.light_input(f"light_{name}", unit.fpn_width, level, output=name)
            return _serialised(_with_rest(graph, unit, tail), precision, library)
        case Stem():
            graph.image_input(unit.height, unit.width)
        case Boundary():
            graph.light_input("input", unit.channels, (unit.height, unit.width))
        case _:
            graph.light_input("input", unit.c_in, (unit.height, unit.width))
    _append(graph, unit)
    graph.conv(light, 1)
    return _serialised(graph.model([graph.last]), precision, library)


def detector_model(
    whole: WholeDetector,
    *,
    batch: int = 1,
    precision: Precision = "fp32",
    rest: FloatPrecision = "fp32",
    tail: Tail = "tensor-nms",
    seed: int = 0,
    library: Int8For = "tensorrt",
) -> bytes:
    """Return the serialised model of a whole detector with random weights.

    It computes what the graph of ``adapt export`` does: from float32 images
    ``Tensor[batch, 3, H, W]`` to detections, see :class:`export.graph.postprocess.Postprocess`.

    Args:
        whole: What to measure.
        batch: Images per inference.
        precision: Of backbone, pyramid and heads; all after them is fp32.
        rest: In int8, of all that is not quantised.
        tail: How the graph ends, ``tensor-nms`` or ``onnx-nms``.
        seed: Seed of the weights.
        library: Whose integer kernels compute int8.

    Raises:
        AdaptError: If the input size is no multiple of 32.
    """
    network, detector, size = whole.network, whole.detector, whole.size
    graph = _Graph(batch, rest if precision == "int8" else precision, seed)
    graph.image_input(size.height, size.width)
    units = list(detector_units(network, detector, size))
    depths = [len(fixed_units(network, size))]  # units up to the end of each block
    for shapes in network.layers():
        depths.append(depths[-1] + len(shapes))
    backbone, pyramid = units[: depths[-1]], units[depths[-1] : -1]
    outputs: list[str] = []  # name of the feature map after each unit of the backbone
    for unit in backbone:
        _append(graph, unit)
        outputs.append(graph.last)
    tapped = [outputs[depths[tap] - 1] for tap in network.taps]
    # The laterals and the convolution of P6; the last two read the same feature map.
    tapped = [*tapped[detector.unread_taps :], tapped[-1]]
    names = rest_inputs(detector.finest_level)
    for name, unit, read in zip(names, pyramid, tapped, strict=True):
        graph.last = read
        _append(graph, unit, output=name)
    return _serialised(_with_rest(graph, rest_unit(detector, size), tail), precision, library)


def _serialised(model: onnx.ModelProto, precision: Precision, library: Int8For) -> bytes:
    if precision == "int8":
        model = with_qdq(model) if library == "tensorrt" else with_zero_points(model)
    return model.SerializeToString()  # type: ignore[no-any-return]


class _Graph:
    """A graph under construction; layers are appended to ``last``, the newest feature map."""

    def __init__(
        self, batch: int, precision: FloatPrecision, seed: int, light: int = LIGHT
    ) -> None:
        self.last = ""
        self.batch, self.light = batch, light
        self.precision = precision
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
        self._input(name, (self.light, *size), self._dtype)
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

    def activation(self, kind: Activation) -> None:
        """Append an activation; ReLU6 is min(max(x, 0), 6)."""
        if kind != "relu6":
            self._append({"relu": "Relu", "hardswish": "HardSwish"}[kind])
            return
        zero = self._constant("unit.zero", np.zeros((), self._dtype))
        self._append("Clip", zero, self._constant("unit.six", np.full((), 6.0, self._dtype)))

    def max_pooling(self) -> None:
        """Append 3x3 max pooling with stride 2."""
        channels, *size = self._shapes[self.last]
        height, width = map(halve, size)
        self._append(
            "MaxPool",
            shape=(channels, height, width),
            kernel_shape=[3, 3],
            strides=[2, 2],
            pads=[1] * 4,
        )

    def squeeze_excitation(self, squeezed: int) -> None:
        """Append the weighting of channels by their means."""
        start, (channels, *_) = self.last, self._shapes[self.last]
        axes = self._constant("unit.positions", np.array([-1, -2], np.int64))
        self._append("ReduceMean", axes, shape=(channels, 1, 1), keepdims=1)
        self.conv(squeezed, 1)
        self._append("Relu")
        self.conv(channels, 1)
        self._append("HardSigmoid", alpha=1 / 6, beta=0.5)
        self._append("Mul", start, shape=self._shapes[start])

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
        # Uniform, not normal: drawing normal values would take longer than all the rest here.
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
            graph.conv(unit.c_out, unit.kernel, stride=2)
            graph.activation(unit.activation)
            if unit.pooled:
                graph.max_pooling()
        case MBConvUnit():
            _mbconv(graph, unit)
        case BottleneckUnit():
            _bottleneck(graph, unit)
        case Lateral():
            graph.conv(unit.c_out, 1, output=output)
        case P6():
            graph.conv(unit.c_out, 3, stride=2, output=output)
        case Boundary():
            pass
        case Rest():
            raise AssertionError("the rest of the detector is no chain of layers")


def _mbconv(graph: _Graph, unit: MBConvUnit) -> None:
    start, hidden = graph.last, unit.hidden
    if unit.expands:
        graph.conv(hidden, 1)
        graph.activation(unit.activation)
    graph.conv(hidden, unit.kernel, stride=unit.stride, groups=hidden)
    graph.activation(unit.activation)
    if unit.se:
        graph.squeeze_excitation(unit.squeezed)
    graph.conv(unit.c_out, 1)
    if unit.residual:
        graph.add_to(start)


def _bottleneck(graph: _Graph, unit: BottleneckUnit) -> None:
    start = graph.last
    graph.conv(unit.hidden, 1)
    graph.activation(unit.activation)
    graph.conv(unit.hidden, unit.kernel, stride=unit.stride)
    graph.activation(unit.activation)
    graph.conv(unit.c_out, 1)
    branch, graph.last = graph.last, start
    if not unit.residual:
        graph.conv(unit.c_out, 1, stride=unit.stride)
    beside, graph.last = graph.last, branch
    graph.add_to(beside)
    graph.activation(unit.activation)


def _with_rest(graph: _Graph, unit: Rest, tail: Tail) -> onnx.ModelProto:
    """Return a model that continues a graph with the rest of the detector."""
    rest = _rest(unit, graph.batch, graph.precision, tail)
    read = rest_inputs(unit.finest_level)
    joined = onnx.compose.merge_models(
        graph.model(read),
        onnx.load_from_string(rest),
        io_map=[(name, name) for name in read],
        outputs=list(DETECTIONS),
    )
    joined.ClearField("metadata_props")  # they describe the rest only
    del joined.opset_import[1:]  # merging lists the same one twice
    return joined


# Exporting takes seconds, and all detectors of a search have the same rest.
@functools.lru_cache(maxsize=4)
def _rest(unit: Rest, batch: int, precision: FloatPrecision, tail: Tail) -> bytes:
    fields = asdict(unit)
    size = InputSize(fields.pop("height"), fields.pop("width"))
    detector = DetectorConfig(**fields)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rest.onnx")
        options: dict[str, Any] = {"batch": batch, "precision": precision, "tail": tail}
        return export_rest(detector, size, path, **options).read_bytes()


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
