"""What do the operations of a backbone pass on, over unlabelled images? (means, covariances)"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset
from adapt.data.images import InputSize
from adapt.mapping.pretrained import operations_of
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from adapt.network.operations import MBConv

IMAGES = 64  # with 24 or more, MobileNetV2's axes hardly change any more; all of a smaller split


def unlabelled(
    split: CocoSplit, size: InputSize, number: int = IMAGES, *, between: bool = False
) -> Iterator[Tensor]:
    """Yield images of a split, evenly spaced, fitted as for training but never mirrored.

    Which ones depends on nothing but the split, so that a search, its fine-tunings and all seeds
    and processes measure the same.

    Args:
        split: Images; their boxes are not used.
        size: The detector's input.
        number: Most images.
        between: Whether to take those halfway between these; other ones if the split has twice as
            many or more.

    Yields:
        ``Tensor[1, 3, H, W]``, normalised as a backbone takes it.
    """
    images = DetectionDataset(split, size)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (IMAGE_MEAN, IMAGE_STD))
    number = min(number, len(images))
    for index in range(number):
        pixels, _ = images[(2 * index + between) * len(images) // (2 * number)]
        yield (pixels[None] / 255 - mean) / std


def batched(images: Iterable[Tensor], size: int = 8) -> list[Tensor]:
    """Return the images in batches of up to ``size`` of the same height and width."""
    return [
        torch.cat(together[start : start + size])
        for _, group in groupby(images, key=lambda image: image.shape)
        for together in [list(group)]
        for start in range(0, len(together), size)
    ]


class Spread:
    """Mean and variance of channels over all positions of all images, in double precision."""

    def __init__(self) -> None:
        self._number = 0
        self._sum = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count ``Tensor[N, C, H, W]`` in."""
        columns = x.double().transpose(0, 1).flatten(1)
        self._number += columns.shape[1]
        self._sum = self._sum + columns.sum(1)
        self._squares = self._squares + columns.square().sum(1)

    @property
    def mean(self) -> Tensor:
        """Tensor[C]."""
        return self._sum / self._number

    @property
    def variance(self) -> Tensor:
        """Tensor[C]."""
        return (self._squares / self._number - self.mean.square()).clamp_min(0)


class Moments:
    """Mean and covariance of channels over all positions of all images, in double precision.

    Args:
        channels: How many channels.
    """

    def __init__(self, channels: int) -> None:
        self._number = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count ``Tensor[N, C, H, W]`` in."""
        columns = x.double().transpose(0, 1).flatten(1)
        self._number += columns.shape[1]
        self._sum += columns.sum(1)
        self._products += columns @ columns.T

    @property
    def mean(self) -> Tensor:
        """Tensor[C]."""
        return self._sum / self._number

    @property
    def covariance(self) -> Tensor:
        """Tensor[C, C]."""
        return self._products / self._number - torch.outer(self.mean, self.mean)


@dataclass(frozen=True)
class Passed:
    """What one MBConv passes on.

    Attributes:
        hidden: Of what its projection reads.
        out: Of its output, before the residual is added.
    """

    hidden: Spread
    out: Moments


@torch.no_grad()
def passed_on(backbone: Backbone, images: Iterable[Tensor]) -> dict[MBConv, Passed]:
    """Measure what every MBConv of the blocks passes on.

    Args:
        backbone: In evaluation mode.
        images: Normalised images, each ``Tensor[N, 3, H, W]``.
    """
    passed = {
        op: Passed(Spread(), Moments(op.shape.c_out))
        for block in operations_of(backbone)
        for _, op in block
        if isinstance(op, MBConv)
    }
    dtype = next(backbone.parameters()).dtype
    for image in images:
        x = image.to(dtype)
        for layer in backbone.features:
            if layer not in passed:
                x = layer(x)
                continue
            assert isinstance(layer, MBConv)
            hidden = layer.conv[:-2](x)
            out = layer.conv[-2:](hidden)
            passed[layer].hidden.add(hidden)
            passed[layer].out.add(out)
            x = x + out if layer.shape.residual else out
    return passed
