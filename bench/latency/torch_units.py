"""Which PyTorch module measures a unit, or a whole detector, run eagerly?

The counterpart of :mod:`bench.latency.onnx_units`: units stand between two light convolutions,
and the rest of the detector is torchvision's own code, pre-processing included.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture, mobilenet_v2
from adapt.cost.units import (
    P6,
    Boundary,
    Lateral,
    MBConvUnit,
    Measurable,
    Rest,
    Stem,
    pyramid_sizes,
)
from adapt.data.images import InputSize
from adapt.detector.retinanet import DetectorConfig, build_retinanet, top_down
from adapt.network.backbone import Backbone
from adapt.network.operations import MBConv, stem
from bench.latency.onnx_units import LIGHT


def unit_call(
    unit: Measurable, batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], None]:
    """Return a call that runs a unit with random weights on a random input."""
    if isinstance(unit, Rest):
        return _detect(_rest(unit), unit.height, unit.width, batch, device, dtype)
    layers = _layers(unit)
    network = nn.Sequential(*layers).eval().to(device, dtype)
    channels = 3 if isinstance(unit, Stem) else LIGHT
    images = torch.randn(batch, channels, unit.height, unit.width, device=device, dtype=dtype)

    @torch.inference_mode()
    def call() -> None:
        network(images)

    return call


def detector_call(
    network: Architecture,
    detector: DetectorConfig,
    size: InputSize,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], None]:
    """Return a call that runs a whole detector with random weights on random images."""
    model = build_retinanet(Backbone(network), detector)
    return _detect(model, size.height, size.width, batch, device, dtype)


def _layers(unit: Measurable) -> list[nn.Module]:
    match unit:
        case Stem():
            return [stem(unit.c_out), _light(unit.c_out, LIGHT)]
        case MBConvUnit():
            middle: nn.Module = MBConv(unit)
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
    """A backbone without cost: light convolutions make what the laterals and P6 would."""

    def __init__(self, fpn: nn.Module, unit: Rest) -> None:
        super().__init__()
        self.fpn = fpn
        self.light = nn.ModuleList([_light(LIGHT, unit.fpn_width) for _ in range(4)])
        self.levels = pyramid_sizes(unit.height, unit.width)[:4]

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        """Return P3 to P7; of the images only batch, type and device count."""
        maps = [
            light(images.new_ones(len(images), LIGHT, *level))
            for light, level in zip(self.light, self.levels, strict=True)
        ]
        levels = top_down(self.fpn, maps[:3], maps[3])
        return OrderedDict((str(number), level) for number, level in enumerate(levels))


def _rest(unit: Rest) -> RetinaNet:
    fields = asdict(unit)
    del fields["height"], fields["width"]
    model = build_retinanet(Backbone(mobilenet_v2()), DetectorConfig(**fields))
    model.backbone = _LightPyramid(model.backbone.fpn, unit)
    return model


def _detect(
    model: RetinaNet,
    height: int,
    width: int,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], None]:
    model = model.eval().to(device, dtype)
    images = list(torch.rand(batch, 3, height, width, device=device, dtype=dtype))

    @torch.inference_mode()
    def call() -> None:
        model(images)

    return call
