"""Is a search collapsing?

Differentiable searches fail in two ways: skip connections win because they need no training, and a
block decides before its candidates were compared.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from adapt.space import SKIP, SearchSpace

DECIDED = 0.1  # entropy, as a share of the uniform distribution's
EARLY = 0.5  # share of the architecture steps
DOMINANT = 1.5  # times the probability of one candidate among equals


def entropy_share(probabilities: Tensor) -> float:
    """Return the entropy as a share of the uniform distribution's; 0 is decided.

    Args:
        probabilities: Tensor[K].
    """
    if len(probabilities) < 2:
        return 0.0
    entropy = float(-(probabilities * probabilities.clamp_min(1e-12).log()).sum())
    return entropy / math.log(len(probabilities))


def mean_entropy(distributions: Sequence[Tensor]) -> float:
    """Return the mean :func:`entropy_share` of all distributions that leave a choice."""
    shares = [entropy_share(p) for p in distributions if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0


def collapse_warnings(
    space: SearchSpace, ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor], done: float
) -> list[str]:
    """Return what looks like a collapse, one sentence each; nothing before architecture steps.

    Args:
        space: The search space.
        ops: Softmax of alpha per block and position.
        widths: Softmax of beta per block.
        done: Share of the architecture steps taken.
    """
    if done <= 0:
        return []
    return [*_skips(space, ops), *(_early(ops, widths) if done < EARLY else ())]


def _skips(space: SearchSpace, ops: Sequence[Sequence[Tensor]]) -> list[str]:
    won = optional = 0
    excess = 0.0
    for block, chosen in zip(space.blocks, ops, strict=True):
        for position, p in enumerate(chosen):
            candidates = block.candidates(position)
            if SKIP in candidates:
                optional += 1
                won += candidates[int(p.argmax())] == SKIP
                excess += float(p[candidates.index(SKIP)]) * len(p)
    if 2 * won <= optional or excess < DOMINANT * optional:
        return []
    return [
        "skip is the most probable candidate of most optional operations; if the budget does not "
        "ask for it, raise warmup_epochs, lower cost_weight or arch_lr, or set bi_sampling = true"
    ]


def _early(ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor]) -> list[str]:
    found = []
    for number, (chosen, width) in enumerate(zip(ops, widths, strict=True), start=1):
        for name, distributions in (("operations", chosen), ("widths", [width])):
            share = mean_entropy(distributions)
            if any(len(p) > 1 for p in distributions) and share < DECIDED:
                found.append(
                    f"block {number} has decided on its {name} (entropy below {DECIDED:.0%} of "
                    "uniform) in the first half of the architecture steps; lower arch_lr, or raise "
                    "warmup_epochs"
                )
    return found
