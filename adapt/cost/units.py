"""Which separately measurable units does a detector consist of, and what do they cost in MAdds?

The cost of a detector is the sum of the costs of its units. Their multiply-adds are counted here;
their latencies are measured by :mod:`bench.costs.profiler` and looked up in a
:class:`~adapt.cost.table.CostTable`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from adapt.architecture import Architecture, BottleneckShape, MBConvShape, Shape, first_shape
from adapt.artifacts import LATER, identity
from adapt.data.images import InputSize
from adapt.detector.config import COARSEST, RATIOS, DetectorConfig, HeadKind
from adapt.detector.faster_rcnn import most_proposals
from adapt.detector.separable import separable_madds
from adapt.space import SearchSpace
from adapt.traits import Activation, traits_of


@dataclass(frozen=True)
class Stem:
    """Convolution with stride 2 on a ``height`` x ``width`` image, BatchNorm, activation.

    3x3 max pooling with stride 2 follows if it is ``pooled``.
    """

    c_out: int
    height: int
    width: int
    activation: Activation = field(default="relu6", kw_only=True, metadata=LATER)
    kernel: int = field(default=3, kw_only=True, metadata=LATER)
    pooled: bool = field(default=False, kw_only=True, metadata=LATER)

    @property
    def out(self) -> tuple[int, int]:
        """(height, width) of its output."""
        height, width = halve(self.height), halve(self.width)
        return (halve(height), halve(width)) if self.pooled else (height, width)


@dataclass(frozen=True)
class MBConvUnit(MBConvShape):
    """One MBConv at an input resolution of ``height`` x ``width``."""

    height: int
    width: int


@dataclass(frozen=True)
class BottleneckUnit(BottleneckShape):
    """One bottleneck at an input resolution of ``height`` x ``width``."""

    height: int
    width: int


OperationUnit = MBConvUnit | BottleneckUnit


def operation_unit(shape: Shape, resolution: tuple[int, int]) -> OperationUnit:
    """Return the unit of an operation's shape at an input resolution (height, width)."""
    height, width = resolution
    if isinstance(shape, BottleneckShape):
        return BottleneckUnit(**asdict(shape), height=height, width=width)
    return MBConvUnit(**asdict(shape), height=height, width=width)


@dataclass(frozen=True)
class Lateral:
    """1x1 convolution with bias from a tapped block into the feature pyramid."""

    c_in: int
    c_out: int
    height: int
    width: int


@dataclass(frozen=True)
class P6:
    """3x3 convolution with stride 2 and bias from the last tapped block (C5) to P6."""

    c_in: int
    c_out: int
    height: int
    width: int


@dataclass(frozen=True)
class Rest:
    """What follows the laterals and P6: top-down path (none in SSDLite), P7, heads, decoding, NMS.

    Of Faster R-CNN both stages.

    It is the same for every network of a search space.

    ``height`` x ``width`` is the size of the detector's input.
    """

    fpn_width: int
    head_depth: int
    num_classes: int
    anchor_size: int
    score_threshold: float
    nms_threshold: float
    candidates: int
    nms_candidates: int
    detections: int
    height: int
    width: int
    anchor_scales: int = field(default=3, metadata=LATER)
    head: HeadKind = field(default="retinanet", metadata=LATER)
    finest_level: int = field(default=3, metadata=LATER)
    separable: bool = field(default=False, metadata=LATER)
    proposals: int = field(default=1000, metadata=LATER)
    box_width: int = field(default=1024, metadata=LATER)
    pooled_side: int = field(default=7, metadata=LATER)
    pooled_samples: int = field(default=2, metadata=LATER)

    @property
    def levels(self) -> list[tuple[int, int]]:
        """(height, width) of the levels, finest first."""
        return pyramid_sizes(self.height, self.width, self.finest_level)

    @property
    def reads(self) -> list[tuple[int, int]]:
        """(height, width) of what it reads: the laterals' outputs and P6."""
        return self.levels[:-1]


@dataclass(frozen=True)
class Boundary:
    """A feature map that one unit writes and the next one reads.

    No part of a detector. Units are measured between two light convolutions, so that the runtime
    chooses the memory layout of their input and output as it would inside a network. A boundary
    stands for these convolutions alone; :meth:`adapt.cost.table.CostTable.lookup` subtracts them.
    """

    channels: int
    height: int
    width: int


Unit = Stem | OperationUnit | Lateral | P6 | Rest
Measurable = Unit | Boundary


def unit_key(unit: Measurable) -> str:
    """Return the canonical text that identifies a unit in a cost table."""
    fields = " ".join(f"{name}={_plain(value)}" for name, value in identity(unit).items())
    return f"{_kind(type(unit))} {fields}"


def _kind(unit_class: type[Measurable]) -> str:
    return unit_class.__name__.removesuffix("Unit").lower()


def _plain(value: object) -> object:
    return int(value) if isinstance(value, bool) else value


def parse_key(key: str) -> Measurable:
    """Return the unit whose :func:`unit_key` this is.

    Raises:
        ValueError: If it is none.
    """
    kind, *texts = key.split()
    values = dict(text.split("=", 1) for text in texts)
    for unit_class in get_args(Measurable):
        if _kind(unit_class) == kind:
            types: dict[str, Any] = {field.name: field.type for field in fields(unit_class)}
            parsed = {name: _parsed(types[name], text) for name, text in values.items()}
            unit: Measurable = unit_class(**parsed)
            return unit
    raise ValueError(f"no unit has the key {key!r}")


def _parsed(of: Any, text: str) -> Any:
    """Return the value of a field: a number, or one of the words that its type lists."""
    words = get_args(of)
    if of is float and text.isdecimal():
        return int(text)
    if not words:
        return of(float(text))
    if text not in words:
        raise ValueError(f"{text!r} is none of {', '.join(words)}")
    return text


def boundaries(unit: Unit) -> list[Boundary]:
    """Return the feature maps where a unit meets others: its inputs, then its output."""
    match unit:
        case Stem():
            return [Boundary(unit.c_out, *unit.out)]
        case MBConvUnit(stride=1) | BottleneckUnit(stride=1) | Lateral():
            out = unit.height, unit.width
        case MBConvUnit() | BottleneckUnit() | P6():
            out = halve(unit.height), halve(unit.width)
        case Rest():
            return [Boundary(unit.fpn_width, *level) for level in unit.reads]
    return [Boundary(unit.c_in, unit.height, unit.width), Boundary(unit.c_out, *out)]


def halve(length: int) -> int:
    """Return the output length of a stride-2 convolution with "same" padding."""
    return (length + 1) // 2


def fixed_units(network: Architecture | SearchSpace, size: InputSize) -> list[Unit]:
    """Return what no search changes before the blocks: the stem, and the first block if any."""
    traits, shape = traits_of(network.source), first_shape(network)
    stem = Stem(
        network.stem_width,
        size.height,
        size.width,
        activation=traits.stem,
        kernel=traits.stem_kernel,
        pooled=traits.pooled,
    )
    return [stem, operation_unit(shape, stem.out)] if shape else [stem]


def rest_unit(detector: DetectorConfig, size: InputSize) -> Rest:
    """Return the part of the detector that no choice of the search changes."""
    values: dict[str, Any] = {"height": size.height, "width": size.width}
    names = {one.name for one in fields(Rest)} - values.keys()  # a loss costs nothing
    return Rest(**values, **{name: getattr(detector, name) for name in names})


def block_resolutions(
    network: Architecture | SearchSpace, size: InputSize
) -> list[tuple[int, int]]:
    """Return (height, width) at each block's input, and last the output of the last block."""
    *_, before = (boundaries(unit)[-1] for unit in fixed_units(network, size))
    height, width = before.height, before.width
    resolutions = [(height, width)]
    for block in network.blocks:
        if block.stride == 2:
            height, width = halve(height), halve(width)
        resolutions.append((height, width))
    return resolutions


def detector_units(
    architecture: Architecture, detector: DetectorConfig, size: InputSize
) -> Iterator[Unit]:
    """Yield every unit of a detector, in the order of the data flow."""
    yield from fixed_units(architecture, size)
    resolutions = block_resolutions(architecture, size)
    for number, shapes in enumerate(architecture.layers()):
        for position, shape in enumerate(shapes):
            yield operation_unit(shape, resolutions[number if position == 0 else number + 1])
    taps = zip(architecture.taps, architecture.tap_widths, strict=True)
    for tap, c_in in list(taps)[detector.unread_taps :]:
        yield Lateral(c_in, detector.fpn_width, *resolutions[tap])
    last = resolutions[architecture.taps[-1]]
    yield P6(architecture.tap_widths[-1], detector.fpn_width, *last)
    yield rest_unit(detector, size)


def madds(unit: Unit) -> float:
    """Return the multiply-adds of a unit.

    Convention of Table II: ``k*k*Cin/groups*Cout*Hout*Wout`` per convolution, plus
    ``Cout*Hout*Wout`` for a bias; BatchNorm, activations, additions and upsampling count 0.
    """
    match unit:
        case Stem():
            return _conv(3, unit.c_out, unit.kernel, (halve(unit.height), halve(unit.width)))
        case MBConvUnit():
            return _mbconv(unit)
        case BottleneckUnit():
            return _bottleneck(unit)
        case Lateral():
            return _conv(unit.c_in, unit.c_out, 1, (unit.height, unit.width), bias=True)
        case P6():
            out = halve(unit.height), halve(unit.width)
            return _conv(unit.c_in, unit.c_out, 3, out, bias=True)
        case Rest():
            return _rest(unit)


def _conv(c_in: int, c_out: int, kernel: int, out: tuple[int, int], *, bias: bool = False) -> int:
    return (kernel * kernel * c_in + bias) * c_out * out[0] * out[1]


def _mbconv(unit: MBConvUnit) -> int:
    hidden, into, out = unit.hidden, (unit.height, unit.width), _out(unit)
    expand = _conv(unit.c_in, hidden, 1, into) if unit.expands else 0
    depthwise = _conv(1, hidden, unit.kernel, out)
    se = 0
    if unit.se:
        se = _conv(hidden, unit.squeezed, 1, (1, 1), bias=True)
        se += _conv(unit.squeezed, hidden, 1, (1, 1), bias=True)
    return expand + depthwise + se + _conv(hidden, unit.c_out, 1, out)


def _bottleneck(unit: BottleneckUnit) -> int:
    hidden, out = unit.hidden, _out(unit)
    reduce = _conv(unit.c_in, hidden, 1, (unit.height, unit.width))
    shortcut = 0 if unit.residual else _conv(unit.c_in, unit.c_out, 1, out)
    middle = _conv(hidden, hidden, unit.kernel, out)
    return reduce + middle + _conv(hidden, unit.c_out, 1, out) + shortcut


def _out(unit: OperationUnit) -> tuple[int, int]:
    end = boundaries(unit)[-1]
    return end.height, end.width


def pyramid_sizes(height: int, width: int, finest_level: int = 3) -> list[tuple[int, int]]:
    """Return (height, width) of the levels up to P7, finest first, for a detector's input."""
    sizes = []
    for level in range(1, COARSEST + 1):
        height, width = halve(height), halve(width)
        if level >= finest_level:
            sizes.append((height, width))
    return sizes


def _rest(unit: Rest) -> int:
    if unit.head == "ssdlite":
        return _separable_rest(unit)
    levels, width = unit.levels, unit.fpn_width
    smooth = sum(_conv3(unit, width, level) for level in levels[:-2])
    p7 = _conv(width, width, 3, levels[-1], bias=True)
    tower = sum(_conv3(unit, width, level) for level in levels)
    if unit.head == "faster-rcnn":
        return smooth + p7 + unit.head_depth * tower + _two_stages(unit)
    anchors = 1 if unit.head == "fcos" else len(RATIOS) * unit.anchor_scales
    layers = [anchors * unit.num_classes, anchors * 4]
    if unit.head == "fcos":
        layers.append(1)  # centerness
    output = sum(
        _conv3(unit, outputs, level, output=True) for level in levels for outputs in layers
    )
    return smooth + p7 + 2 * unit.head_depth * tower + output


def _two_stages(unit: Rest) -> int:
    """Return the multiply-adds of the outputs of the first stage, and of the second one.

    RoIAlign counts 0, as upsampling does.
    """
    anchors, width, hidden = len(RATIOS) * unit.anchor_scales, unit.fpn_width, unit.box_width
    cells = [height * width for height, width in unit.levels]
    proposing = sum((width + 1) * anchors * (1 + 4) * number for number in cells)
    layers = (unit.pooled_side**2 * width + 1) * hidden + (hidden + 1) * hidden
    outputs = (hidden + 1) * (1 + 4) * (1 + unit.num_classes)  # 1 for the background
    boxes = most_proposals(cells, anchors, unit.candidates, unit.proposals)
    return proposing + boxes * (layers + outputs)


def _conv3(unit: Rest, c_out: int, out: tuple[int, int], *, output: bool = False) -> int:
    """Return the multiply-adds of a 3x3 convolution of pyramid or heads."""
    if unit.separable:
        return separable_madds(unit.fpn_width, c_out, out[0] * out[1], output=output)
    return _conv(unit.fpn_width, c_out, 3, out, bias=True)


def _separable_rest(unit: Rest) -> int:
    """Return the multiply-adds of P7 and of the two heads of SSDLite."""
    levels, width = unit.levels, unit.fpn_width
    depthwise = sum(_conv(1, width, 3, level) for level in levels)
    tower = depthwise + sum(_conv(width, width, 1, level) for level in levels)
    outputs = len(RATIOS) * unit.anchor_scales * (1 + unit.num_classes + 4)  # 1 for the background
    output = 2 * depthwise + sum(_conv(width, outputs, 1, level, bias=True) for level in levels)
    p7 = _conv(1, width, 3, levels[-1]) + _conv(width, width, 1, levels[-1])
    return p7 + 2 * unit.head_depth * tower + output
