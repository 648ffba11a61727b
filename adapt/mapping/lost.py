"""How much of what the source's taps say is lost by mapping it onto another network?"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor

from adapt.detector.statistics import recalibrate_network
from adapt.mapping.activations import Spread, batched
from adapt.network.backbone import Backbone

FIRST_LEVEL = 3  # of the first tap: C3


@torch.no_grad()
def lost_variance(source: Backbone, target: Backbone, images: Sequence[Tensor]) -> dict[str, float]:
    """Return the share of the variance of C3 to C5 that a target lacks or has wrong.

    It is the variance of (source's tap - target's tap) divided by that of the source's tap, both
    summed over the source's channels; channels that the target does not have count as constant. 0
    is the source's function, 1 what a constant would lose, and a target may be worse than that.
    Constant offsets are free. Both networks' BatchNorms have the statistics of the images, since
    training has those of its batches.

    Args:
        source: The source as it was mapped.
        target: What it was mapped onto, of the same strides.
        images: Normalised images, each ``Tensor[N, 3, H, W]``.
    """
    source, target = deepcopy(source), deepcopy(target)
    batches = batched(images)
    for network in (source, target):
        recalibrate_network(network, batches)
    spreads = [(Spread(), Spread()) for _ in source.tap_widths]
    for batch in batches:
        pairs = zip(source(batch).values(), target(batch).values(), strict=True)
        for (tap, found), (lost, spread) in zip(pairs, spreads, strict=True):
            common = min(tap.shape[1], found.shape[1])
            spread.add(tap)
            lost.add(torch.cat([tap[:, :common] - found[:, :common], tap[:, common:]], dim=1))
    shares = [float(lost.variance.sum() / spread.variance.sum()) for lost, spread in spreads]
    return {f"C{level}": share for level, share in enumerate(shares, start=FIRST_LEVEL)}
