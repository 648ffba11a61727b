"""Which backbones of other papers can be built by name? (the comparators of Table II)"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adapt.architecture import Architecture, Block
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.sources import SOURCES
from adapt.space import Operation


def _mbconvs(stem: int, first: int, taps: tuple[int, ...], *rows: str) -> Architecture:
    """Return a network of MBConvs; a row is the stride, the width and the operations of a block."""
    blocks = []
    for row in rows:
        stride, width, *ops = row.split()
        blocks.append(Block(int(stride), int(width), tuple(Operation.parse(op) for op in ops)))
    return Architecture("mobilenet_v2", stem, first, taps, tuple(blocks))


# Block lists as their authors published them: FNA's and DenseNAS's configurations, FBNet-C of
# mobile-vision, Proxyless (GPU) of proxylessnas. Operations that do nothing are left out.
NETWORKS: dict[str, Architecture] = {
    **{name: build() for name, build in SOURCES.items()},
    "fna": _mbconvs(
        32,
        16,
        (2, 4, 6),
        "2 24 k3_e6 k3_e6",
        "2 32 k7_e6 k5_e6",
        "2 64 k3_e6 k5_e6 k7_e6 k3_e6",
        "1 96 k5_e6 k7_e6",
        "2 160 k7_e6 k7_e6 k7_e3 k7_e6",
        "1 320 k7_e6",
    ),
    "fbnet_c": _mbconvs(
        16,
        16,
        (2, 4, 6),
        "2 24 k3_e6 k3_e1 k3_e1",
        "2 32 k5_e6 k5_e3 k5_e6 k3_e6",
        "2 64 k5_e6 k5_e3 k5_e6 k5_e6",
        "1 112 k5_e6 k5_e6 k5_e6 k5_e3",
        "2 184 k5_e6 k5_e6 k5_e6 k5_e6",
        "1 352 k3_e6",
    ),
    "proxyless_gpu": _mbconvs(
        40,
        24,
        (2, 4, 6),
        "2 32 k5_e3",
        "2 56 k7_e3 k3_e3",
        "2 112 k7_e6 k5_e3",
        "1 128 k5_e6 k3_e3 k5_e3",
        "2 256 k7_e6 k7_e6 k7_e6 k5_e6",
        "1 432 k7_e6",
    ),
    "densenas_c": _mbconvs(
        16,
        16,
        (2, 4, 7),
        "2 24 k3_e6",
        "2 48 k7_e6 k3_e3",
        "2 72 k5_e6 k3_e6 k3_e3",
        "1 128 k3_e6 k3_e3 k3_e3",
        "2 160 k3_e6 k7_e3 k5_e6 k7_e3",
        "1 176 k3_e3 k3_e6 k3_e6 k3_e6",
        "1 384 k7_e6",
    ),
}


class Stages(nn.Module):
    """Stages whose last ones feed a pyramid.

    Args:
        stem: What comes first.
        stages: The stages, in order.
        taps: Places of the stages that are tapped, finest first.
        widths: Their channels.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        taps: Sequence[int],
        widths: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.taps = tuple(taps)
        self.tap_widths = tuple(widths)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the tapped feature maps of ``Tensor[N, 3, H, W]``, finest first."""
        found: OrderedDict[str, Tensor] = OrderedDict()
        x = self.stem(x)
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place in self.taps:
                found[str(len(found))] = x
        return found


class ShuffleBlock(nn.Module):
    """A block of ShuffleNetV2, with one depthwise convolution or, as "Xception", three.

    With stride 1, half of the channels pass by and the halves are interleaved before; with stride
    2, all of them go through both branches.

    Args:
        c_in: Input channels.
        c_out: Output channels.
        kernel: Of the depthwise convolution; 0 for three of 3x3.
        stride: 1 or 2.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride, middle = stride, c_out // 2
        into = c_in if stride == 2 else c_in // 2
        new = c_out - into
        if kernel:
            layers = [
                *_pointwise(into, middle),
                *_depthwise(middle, kernel, stride),
                *_pointwise(middle, new),
            ]
        else:
            layers = [
                *_depthwise(into, 3, stride),
                *_pointwise(into, middle),
                *_depthwise(middle, 3, 1),
                *_pointwise(middle, middle),
                *_depthwise(middle, 3, 1),
                *_pointwise(middle, new),
            ]
        self.main = nn.Sequential(*layers)
        self.aside = nn.Identity()
        if stride == 2:
            aside = [*_depthwise(into, kernel or 3, 2), *_pointwise(into, into)]
            self.aside = nn.Sequential(*aside)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Tensor[N, c_out, H / stride, W / stride]``."""
        if self.stride == 2:
            return torch.cat((self.aside(x), self.main(x)), dim=1)
        aside, main = x[:, ::2], x[:, 1::2]
        return torch.cat((aside, self.main(main)), dim=1)


def _pointwise(c_in: int, c_out: int) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


def _depthwise(channels: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def detnas() -> Stages:
    """Return DetNAS's network for COCO and RetinaNet (300M), as its authors' code lists it."""
    kernels = ((7, 0, 5, 5), (0, 7, 5, 0), (0, 5, 5, 5, 0, 0, 7, 3), (0, 0, 0, 0))
    widths = (64, 160, 320, 640)
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    stages, c_in = [], 16
    for of_stage, width in zip(kernels, widths, strict=True):
        blocks = []
        for place, kernel in enumerate(of_stage):
            blocks.append(ShuffleBlock(c_in, width, kernel, 1 if place else 2))
            c_in = width
        stages.append(nn.Sequential(*blocks))
    return Stages(stem, stages, (1, 2, 3), widths[1:])


OTHERS: dict[str, Callable[[], Stages]] = {"detnas": detnas}


def published_backbone(name: str) -> nn.Module:
    """Return a backbone of another paper, with random parameters.

    Raises:
        AdaptError: If none has the name.
    """
    if name in NETWORKS:
        return Backbone(NETWORKS[name])
    if name in OTHERS:
        return OTHERS[name]()
    raise AdaptError(f"no backbone {name!r}; known are {', '.join([*NETWORKS, *OTHERS])}")
