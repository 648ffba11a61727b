"""How is a source of bottlenecks rewritten so that its first channels are those that matter?

An activation follows the residual, so that the channels which a block's operations add to cannot be
rotated (:mod:`adapt.mapping.principal`), but sorted: by the variance that the block's operations
pass on after it. The two sets of hidden channels, before and behind the k x k convolution, are
sorted each by itself: by the variance that they contribute to what reads them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from adapt.mapping.activations import Spread
from adapt.mapping.layers import reorder, reorder_input, scale_and_shift
from adapt.mapping.pretrained import operations_of
from adapt.network.backbone import Backbone
from adapt.network.operations import Bottleneck


@dataclass(frozen=True)
class _Passed:
    """What one bottleneck passes on.

    Attributes:
        reduced: Of what its k x k convolution reads.
        hidden: Of what its last convolution reads.
        out: Of its output.
    """

    reduced: Spread = field(default_factory=Spread)
    hidden: Spread = field(default_factory=Spread)
    out: Spread = field(default_factory=Spread)


@torch.no_grad()
def sort_bottlenecks(backbone: Backbone, images: Iterable[Tensor]) -> list[Tensor]:
    """Sort all channels of a backbone of bottlenecks, in place; its function stays the same.

    Args:
        backbone: In evaluation mode.
        images: Unlabelled normalised images, each ``Tensor[N, 3, H, W]``.

    Returns:
        Per block Tensor[C], where each of its output channels was before.
    """
    passed, orders = _passed_on(backbone, images), []
    blocks = [
        [op for _, op in block if isinstance(op, Bottleneck)] for block in operations_of(backbone)
    ]
    for block, following in pairwise([*blocks, []]):
        variance = torch.stack([passed[op].out.variance for op in block]).sum(0)
        order = _falling(variance)
        orders.append(order)
        for op in block:
            for layer in (*op.conv[2:], op.shortcut):
                reorder(layer, order)
        for reader in (*block[1:], *following[:1]):
            for conv in reader.input_readers():
                reorder_input(conv, order)
    for op in (op for block in blocks for op in block):
        _sort_hidden(op, passed[op])
    return orders


def _passed_on(backbone: Backbone, images: Iterable[Tensor]) -> dict[Bottleneck, _Passed]:
    passed = {layer: _Passed() for layer in backbone.features if isinstance(layer, Bottleneck)}
    dtype = next(backbone.parameters()).dtype
    for image in images:
        x = image.to(dtype)
        for layer in backbone.features:
            if isinstance(layer, Bottleneck):
                reduced = layer.conv[0](x)
                hidden = layer.conv[1](reduced)
                x = layer.finished(layer.summed(x, layer.conv[2:](hidden)))
                seen = passed[layer]
                pairs = ((seen.reduced, reduced), (seen.hidden, hidden), (seen.out, x))
                for spread, values in pairs:
                    spread.add(values)
            else:
                x = layer(x)
    return passed


def _sort_hidden(op: Bottleneck, passed: _Passed) -> None:
    """Sort both sets of hidden channels by the variance that each contributes, falling."""
    middle, expand = op.hidden_readers()
    for writer, reader, norm, spread in (
        (op.conv[0], middle, op.conv[1].get_submodule("1"), passed.reduced),
        (op.conv[1], expand, op.conv[3], passed.hidden),
    ):
        assert isinstance(norm, nn.BatchNorm2d)
        order = _falling(spread.variance * _strength(reader, norm))
        reorder(writer, order)
        reorder_input(reader, order)


def _strength(reader: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return Tensor[in], the sum of a convolution's squared weights by what it reads."""
    scale, _ = scale_and_shift(norm)
    return (scale[:, None, None, None] * reader.weight.double()).square().sum((0, 2, 3))


def _falling(values: Tensor) -> Tensor:
    return values.argsort(descending=True, stable=True)
