"""Which network of each setting of pyramid, heads and input meets a latency with the best scores?

A cost table is of one setting. Two whole detectors of another one carry it over: with the cheapest
backbone of the space, and with one drawn from it. A line through both corrects predictions, as that
of a certificate does. Networks are measured on the way to the budget besides, so that what is left
of an error only costs measurements. The two are the same for all scores, budgets and random
networks, so that a meter measures them once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import NonNegativeFloat

from adapt.architecture import Architecture
from adapt.artifacts import check_header, header, parsing, read_json, typed, write_json
from adapt.cost.expectation import CostModel
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.space import SearchSpace
from bench.acceptance.meet import TOLERANCE, BudgetMeter, Met
from bench.acceptance.scaling import Sized
from search.derive.chance import noise_deriver
from search.derive.exact import Derived, Deriver
from search.recipe.joint import Setting

Derive = Callable[[CostModel], Deriver]  # of the scores of a space


def finalists(
    meter: BudgetMeter,
    derive: Derive,
    model: CostModel,
    space: SearchSpace,
    settings: Sequence[Setting],
    budget_ms: float,
    progress: Progress = silent,
) -> list[Met]:
    """Return the network of the best scores for every setting in which one meets the budget.

    Args:
        meter: Measures detectors.
        derive: Returns what derives networks, for costs.
        model: Costs in the recipe's own setting, in ms.
        space: Space of the backbone.
        settings: Pyramids, heads and inputs.
        budget_ms: The latency to meet; a network of the best scores may take less.
        progress: Told after every setting.

    Raises:
        AdaptError: If no setting has a network within the budget.
    """
    found, least = [], dict[str, float]()
    for done, setting in enumerate(settings, start=1):
        deriver, cheapest = carried(meter, derive, model, space, setting)
        least[str(setting)] = cheapest.measured_ms
        if cheapest.measured_ms <= budget_ms:
            met = meter.fitting_by_scores(deriver, setting, space, budget_ms)
            found.append(met or cheapest)  # none is found on a machine whose speed changes
        progress(done, len(settings), str(setting))
    if not found:
        of = min(least, key=lambda name: least[name])
        raise AdaptError(
            f"no detector of {len(settings)} settings takes {budget_ms:.4g} ms or less, the "
            f"cheapest {least[of]:.4g} ms ({of}); raise the budget, or add smaller candidates to "
            "[joint] or a space with smaller networks"
        )
    return found


def carried(
    meter: BudgetMeter, derive: Derive, model: CostModel, space: SearchSpace, setting: Setting
) -> tuple[Deriver, Met]:
    """Return what derives networks in another setting, and the cheapest network, measured.

    Args:
        meter: Measures detectors.
        derive: Returns what derives networks, for costs.
        model: Costs in the recipe's own setting.
        space: Space of the backbone.
        setting: The other setting.
    """
    drawn = noise_deriver(model, space, np.random.default_rng(0))
    ends = drawn.best(drawn.cheapest), drawn.best(drawn.dearest)

    def measured(network: Derived) -> Met:
        sized = Sized(network.choices.architecture(space), setting)
        return Met(sized, meter.measure(sized)[0], "the cheapest network of its setting")

    (low, high), (cheapest, other) = [end.cost for end in ends], [measured(end) for end in ends]
    low_ms, high_ms = cheapest.measured_ms, other.measured_ms
    if high <= low or high_ms <= low_ms:  # one network, or no latency depends on it
        return derive(model.corrected(low_ms / low, 0.0)), cheapest
    scale = (high_ms - low_ms) / (high - low)
    return derive(model.corrected(scale, low_ms - scale * low)), cheapest


def drawn_jointly(
    meter: BudgetMeter,
    model: CostModel,
    space: SearchSpace,
    settings: Sequence[Setting],
    budget_ms: float,
    chance: np.random.Generator,
) -> Met:
    """Return a random network in a random setting that fills the budget.

    Args:
        meter: Measures detectors.
        model: Costs in the recipe's own setting, in ms.
        space: Space of the backbone.
        settings: Pyramids, heads and inputs.
        budget_ms: The latency to meet.
        chance: Where the random numbers come from.

    Raises:
        AdaptError: If no setting has a network within the budget.
    """
    found = list[Met]()
    for number in chance.permutation(len(settings)):
        setting = settings[number]
        derive = partial(noise_deriver, space=space, chance=chance)
        deriver, cheapest = carried(meter, derive, model, space, setting)
        if cheapest.measured_ms > budget_ms:
            continue
        met = meter.fitting_by_scores(deriver, setting, space, budget_ms) or cheapest
        found.append(met)
        # The largest network of a small setting may not fill the budget: then another one does.
        if met.measured_ms >= (1 - TOLERANCE) * budget_ms:
            break
    if not found:
        raise AdaptError(
            f"none of {len(settings)} settings has a detector of {budget_ms:.4g} ms or less; raise "
            "the budget, add smaller candidates to [joint], or choose a smaller space.preset"
        )
    return max(found, key=lambda met: met.measured_ms)


def save_finalists(found: Sequence[Met], path: Path, **content: Any) -> None:
    """Write finalists.

    Args:
        found: The finalists.
        path: The file.
        content: What else it is to say.
    """
    rows = [
        {
            "architecture": met.sized.architecture.to_dict(),
            **met.sized.setting.to_dict(),
            "measured_ms": met.measured_ms,
            "how": met.how,
        }
        for met in found
    ]
    write_json(path, header("finalists", **content, finalists=rows))


def load_finalists(path: Path) -> tuple[list[Met], Mapping[str, Any]]:
    """Read finalists, and what else their file says.

    Raises:
        AdaptError: If the file is missing, damaged or of another kind.
    """
    content = check_header(read_json(path, "finalists"), "finalists", path)
    found = []
    with parsing("finalists", path, "delete it, so that they are found again"):
        for row in content["finalists"]:
            sized = Sized(Architecture.from_dict(row["architecture"]), Setting.from_dict(row))
            measured_ms = typed(NonNegativeFloat, row["measured_ms"])
            found.append(Met(sized, measured_ms, typed(str, row["how"])))
    return found, content
