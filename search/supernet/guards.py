"""Is a search going wrong? (collapse to skip connections, early decision, missed target)

Differentiable searches collapse in two ways: skip connections win because they need no training,
or a block decides before its candidates were compared.
"""

from collections.abc import Sequence

from torch import Tensor

from adapt.space import SKIP, SearchSpace
from search.derive.decision import mean_entropy

DECIDED = 0.1  # entropy of a decided distribution, as a share of the uniform one's
EARLY = 0.5  # share of the architecture steps before which a decision is early
DOMINANT = 1.5  # mean probability of skips that win, as a multiple of the uniform one


def collapse_warnings(
    space: SearchSpace, ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor], done: float
) -> list[str]:
    """Return a sentence for each sign of a collapse; none before the first architecture step.

    Args:
        space: The search space.
        ops: Softmax of alpha per block and position.
        widths: Softmax of beta per block.
        done: Share of the architecture steps taken.
    """
    if done <= 0:
        return []
    return [*_skip_warnings(space, ops), *(_early_warnings(ops, widths) if done < EARLY else ())]


def _skip_warnings(space: SearchSpace, ops: Sequence[Sequence[Tensor]]) -> list[str]:
    won = optional = 0
    excess = 0.0  # sum of the skips' probabilities, each as a multiple of the uniform one
    for block, block_ops in zip(space.blocks, ops, strict=True):
        for position, p in enumerate(block_ops):
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


def _early_warnings(ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor]) -> list[str]:
    warnings = []
    for number, (block_ops, width) in enumerate(zip(ops, widths, strict=True), start=1):
        for name, distributions in (("operations", block_ops), ("widths", [width])):
            share = mean_entropy(distributions)
            if any(len(p) > 1 for p in distributions) and share < DECIDED:
                warnings.append(
                    f"block {number} has decided on its {name} (entropy below {DECIDED:.0%} of "
                    "uniform) in the first half of the architecture steps; lower arch_lr, or raise "
                    "warmup_epochs"
                )
    return warnings


def target_warnings(argmax_cost: float, target: float, typed_target: str) -> list[str]:
    """Return a sentence if the arg max network of a finished search costs more than the target.

    Args:
        argmax_cost: What it costs, in G MAdds or milliseconds.
        target: The target, in the same unit.
        typed_target: The target as the recipe writes it.
    """
    if argmax_cost <= target:
        return []
    return [
        f"the search ended at {argmax_cost:.4g}, above its target of {target:.4g}; derive with "
        f"--budget {typed_target}, and search with more epochs or a higher arch_lr"
    ]
