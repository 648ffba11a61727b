"""Which PyTorch module is run to measure a unit, or a whole detector, eagerly?

The counterpart of :mod:`bench.latency.onnx_units`, where the two light convolutions around a unit
are explained. The rest of a detector is torchvision's own code, pre-processing included.
"""

from collections import OrderedDict
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.cost.units import (
    P6,
    BottleneckUnit,
    Boundary,
    Lateral,
    MBConvUnit,
    Measurable,
    Rest,
    Stem,
)
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector, levels_after
from adapt.network.backbone import Backbone
from adapt.network.operations import conv_operation, stem, stem_pooling
from adapt.sources import mobilenet_v2
from bench.latency.onnx_units import LIGHT
from bench.latency.subject import Subject, WholeDetector
from bench.latency.timing import Call


def torch_call(subject: Subject, batch: int, device: torch.device, dtype: torch.dtype) -> Call:
    """Return a call that runs a unit or a detector, with random weights, on a random input."""
    here: dict[str, Any] = {"device": device, "dtype": dtype}
    if isinstance(subject, WholeDetector):
        size = subject.size
        detector = build_detector(Backbone(subject.network), subject.detector)
        return _detect(detector, torch.rand(batch, 3, size.height, size.width, **here))
    height, width = subject.height, subject.width
    if isinstance(subject, Rest):
        return _detect(_rest(subject), torch.rand(batch, 3, height, width, **here))
    network = nn.Sequential(*_layers(subject)).eval().to(device, dtype)
    channels = 3 if isinstance(subject, Stem) else LIGHT
    inputs = torch.randn(batch, channels, height, width, **here)

    @torch.inference_mode()
    def call() -> None:
        network(inputs)

    return call


def _layers(unit: Measurable) -> list[nn.Module]:
    match unit:
        case Stem():
            pooling = [stem_pooling()] if unit.pooled else []
            layers = [stem(unit.c_out, unit.activation, unit.kernel), *pooling]
            return [*layers, _light(unit.c_out, LIGHT)]
        case MBConvUnit() | BottleneckUnit():
            middle: nn.Module = conv_operation(unit)
        case Lateral():
            middle = nn.Conv2d(unit.c_in, unit.c_out, 1)
        case P6():
            middle = nn.Conv2d(unit.c_in, unit.c_out, 3, stride=2, padding=1)
        case Boundary():
            return [_light(LIGHT, unit.channels), _light(unit.channels, LIGHT)]
        case Rest():
            raise AssertionError("the rest of the detector is no chain of layers")
    return [_light(LIGHT, unit.c_in), middle, _light(unit.c_out, LIGHT)]


def _light(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1)


class _LightPyramid(nn.Module):
    """A backbone that costs next to nothing: its maps stand for those of the laterals and P6."""

    def __init__(self, fpn: nn.Module, unit: Rest) -> None:
        super().__init__()
        self.fpn = fpn
        self.light = nn.ModuleList([_light(LIGHT, unit.fpn_width) for _ in unit.reads])
        self.levels = unit.reads

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the levels from constant inputs of the images' batch, type and device."""
        maps = [
            light(images.new_ones(len(images), LIGHT, *level))
            for light, level in zip(self.light, self.levels, strict=True)
        ]
        levels = levels_after(self.fpn, maps[:-1], maps[-1])
        return OrderedDict((str(number), level) for number, level in enumerate(levels))


def _rest(unit: Rest) -> RetinaNet:
    fields = asdict(unit)
    del fields["height"], fields["width"]
    model = build_detector(Backbone(mobilenet_v2()), DetectorConfig(**fields))
    model.backbone = _LightPyramid(model.backbone.fpn, unit)
    return model


def _detect(model: RetinaNet, images: Tensor) -> Call:
    model = model.eval().to(images.device, images.dtype)
    listed = list(images)  # as torchvision's detectors take them

    @torch.inference_mode()
    def call() -> None:
        model(listed)

    return call
