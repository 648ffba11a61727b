"""Which channels belong to which candidate width? (paper Fig. 2)"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

MaskKind = Literal["non-overlapping", "overlapping", "individual"]
GateNorm = Literal["none", "mean", "max"]
Gates = Literal["operation", "block"]  # whose outputs overlapping masks multiply


def non_overlapping_masks(widths: Sequence[int]) -> Tensor:
    """Split the channel axis among the candidate widths (Fig. 2b).

    Candidate ``k`` owns only the channels it adds to candidate ``k - 1``, so raising one weight
    never lifts another candidate's channels.

    Args:
        widths: Candidate widths, strictly increasing.

    Returns:
        Tensor[K, C]: 0/1 rows with ``C = widths[-1]``; every column sums to 1.

    Raises:
        ValueError: If ``widths`` is empty or not strictly increasing.
    """
    up_to_width = overlapping_masks(widths)
    below = torch.cat([torch.zeros_like(up_to_width[:1]), up_to_width[:-1]])
    return up_to_width - below


def overlapping_masks(widths: Sequence[int]) -> Tensor:
    """Let every candidate own all channels up to its width (Fig. 2a, as in FBNetV2).

    Args:
        widths: Candidate widths, strictly increasing.

    Returns:
        Tensor[K, C]: 0/1 rows with ``C = widths[-1]``; row ``k`` sums to ``widths[k]``.

    Raises:
        ValueError: If ``widths`` is empty or not strictly increasing.
    """
    if not widths or widths[0] < 1 or any(a >= b for a, b in pairwise(widths)):
        raise ValueError(f"widths must be positive and strictly increasing, got {list(widths)}")
    channels = torch.arange(widths[-1])
    owned = channels < torch.tensor(widths).unsqueeze(1)
    return owned.to(torch.get_default_dtype())


def gate(masks: Tensor, probabilities: Tensor, norm: GateNorm) -> Tensor:
    """Return the factor of every channel: the weighted sum of masks in Eq. 2.

    With non-overlapping masks the mean factor is about 1/K. Inside the backbone the next BatchNorm
    takes that scale out again, the feature pyramid does not: ``mean`` and ``max`` divide by the
    mean or the largest factor.

    Args:
        masks: Tensor[K, C].
        probabilities: Tensor[K], softmax of beta.
        norm: ``none`` is the paper's.

    Returns:
        Tensor[C].
    """
    factors = probabilities @ masks
    # Divided by a constant (detach), so that the gradient of Eq. 2 keeps its direction.
    match norm:
        case "none":
            return factors
        case "mean":
            return factors / factors.detach().mean()
        case "max":
            return factors / factors.detach().max()
