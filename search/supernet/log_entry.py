"""What does a search report after an epoch? (losses, costs, entropies, every probability)"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapt.network.masks import gate
from adapt.network.mixed import SharedBlock
from adapt.network.supernet import Supernet
from adapt.space import SearchSpace
from search.derive.decision import Decision
from search.supernet.bilevel import BilevelSearch
from search.supernet.guards import collapse_warnings, target_warnings
from search.train.log import Entry


@torch.no_grad()
def log_entry(search: BilevelSearch, step: int) -> Entry:
    """Return what is worth knowing after ``step`` steps; losses are means over the epoch."""
    supernet, schedule, multiplier = search.supernet, search.schedule, search.multiplier
    ops, widths = supernet.probabilities()
    argmax_cost = search.argmax_cost()
    warnings = collapse_warnings(supernet.space, ops, widths, schedule.arch_share(step))
    decision, finished = Decision.of(ops, widths), step == schedule.total_steps
    if multiplier.target is not None and finished:
        warnings += target_warnings(argmax_cost, multiplier.target, search.settings.target)
    if decision.doubt and finished:
        warnings.append(decision.doubt)
    return {
        "step": step,
        "epoch": step / schedule.steps_per_epoch,
        **search.losses.means(),
        "lr": search.lr_schedule.get_last_lr()[0],
        "expected_cost": float(search.expected_cost()),
        "argmax_cost": argmax_cost,
        "target": multiplier.target,
        "cost_weight": multiplier.value,
        "cost_weight_in_force": multiplier.in_force(argmax_cost),
        "cost_unit": "GMAdds" if search.settings.cost == "madds" else "ms",
        "op_entropy": decision.op_entropy,
        "width_entropy": decision.width_entropy,
        "gate_scale": _gate_scales(supernet, widths),
        "argmax": supernet.argmax().to_dict()["blocks"],
        "probabilities": _named_probabilities(supernet.space, ops, widths),
        "warnings": warnings,
    }


def _gate_scales(supernet: Supernet, widths: Sequence[Tensor]) -> list[float]:
    """Return the mean factor of the channels of every shared block."""
    # With many candidate widths the gates are small, and so are the features that the pyramid sees.
    return [
        float(gate(block.masks, p, block.gate_norm).mean())
        for block, p in zip(supernet.blocks, widths, strict=True)
        if isinstance(block, SharedBlock)
    ]


def _named_probabilities(
    space: SearchSpace, ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the probability of every candidate by block, by position or ``width``, and by name."""
    named: dict[str, dict[str, dict[str, float]]] = {}
    for number, (block, block_ops, block_widths) in enumerate(
        zip(space.blocks, ops, widths, strict=True), start=1
    ):
        groups = {"width": dict(zip(map(str, block.widths), block_widths.tolist(), strict=True))}
        for position, p in enumerate(block_ops):
            names = map(str, block.candidates(position))
            groups[f"op {position + 1}"] = dict(zip(names, p.tolist(), strict=True))
        named[f"block {number}"] = groups
    return named
