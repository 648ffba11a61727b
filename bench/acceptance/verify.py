"""Which network of a search meets a latency budget when it is measured, not predicted?

Derive within what the table must say for the target to be met, measure the whole detector, correct
what the table must say, repeat. The statistic is the table's: the minimum over interleaved rounds.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.acceptance.approach import BELOW, Approach
from bench.acceptance.stopwatch import Stopwatch
from bench.costs.certify import WHOLE_PROTOCOL
from bench.costs.of_recipe import recipe_target
from bench.latency.backend import Target
from bench.latency.timing import Protocol
from search.derive.derive import FinishedSearch, open_search
from search.derive.exact import Derived
from search.recipe.budget import Budget

MEASUREMENTS = 8


def derive_verified(
    searched: Path,
    out: Path,
    costs: Path | None,
    budget: Budget | None,
    *,
    uncertified: bool = False,
    limit: int = MEASUREMENTS,
    target: Target | None = None,
    protocol: Protocol = WHOLE_PROTOCOL,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the best network whose measured latency is within a budget to ``out``.

    Args:
        searched: ``supernet.pt``.
        out: Architecture file to write.
        costs: Cost table of this machine.
        budget: The target, in milliseconds.
        uncertified: Whether a table without a certificate will do.
        limit: Most networks to measure.
        target: Where to measure; what the recipe's device describes if None.
        protocol: How much to measure of each.
        progress: Told after every measurement.

    Returns:
        The network, its costs, how close it is, why no closer, and all measured rounds.

    Raises:
        AdaptError: If the budget is not in milliseconds, the table was measured elsewhere, or no
            network was measured to fit.
    """
    if budget is None or budget.unit != "ms":
        raise AdaptError(
            "--verify measures latency and needs a budget in milliseconds, got "
            f"{budget or 'none'}; pass one such as --budget 4.0ms"
        )
    make_folder(out.parent)  # before minutes of measurements, not after
    with ExitStack() as stack:
        search = stack.enter_context(open_search(searched, costs, uncertified=uncertified))
        search.deriver("ms")  # tells what is missing
        target = target or recipe_target(search.recipe, costs)
        watch = stack.enter_context(Stopwatch(search, target, protocol))
        approach = approached(search, budget, watch, limit, progress)
        best = approach.best
        assert best is not None
        architecture = search.network(best.network)
        found = {**search.costs(architecture), "measured_ms": best.measured_ms}
        rounds = _report(approach, search)
        architecture.save(
            out,
            rule=f"budget {budget}, verified",
            budget=asdict(budget),
            search=search.identity,
            costs=found,
            measured_on=asdict(watch.conditions),
            rounds=rounds,
        )
    closeness = {"below_target": approach.below, "outcome": approach.outcome, "rounds": rounds}
    return {"architecture": str(out), "network": str(architecture), **found, **closeness}


def approached(
    search: FinishedSearch,
    budget: Budget,
    watch: Stopwatch,
    limit: int = MEASUREMENTS,
    progress: Progress = silent,
) -> Approach:
    """Measure networks of a search on the way to a budget in milliseconds.

    Args:
        search: A finished search with its cost table.
        budget: The target.
        watch: Measures networks.
        limit: Most measurements.
        progress: Told after every measurement.

    Returns:
        What was measured, with a best network.

    Raises:
        AdaptError: If no network was measured to fit.
    """
    approach = Approach(search.deriver("ms"), budget.amount)

    def measure(network: Derived) -> tuple[float, bool]:
        found = watch.one(search.network(network))
        progress(len(approach.rounds) + 1, limit, f"{found[0]:.4g} ms")
        return found

    approach.run(measure, limit)
    if approach.best is None:
        raise _none_fits(approach)
    return approach


def _none_fits(approach: Approach) -> AdaptError:
    shown = min(approach.rounds, key=lambda r: r.network.cost)
    which = "the cheapest network of the search takes"
    if shown.network.cost * BELOW > approach.deriver.cheapest:
        shown = min(approach.rounds, key=lambda r: r.measured_ms)
        which = f"the fastest of {len(approach.rounds)} measured networks takes"
    return AdaptError(
        f"no network was measured within {approach.target_ms:g} ms: {which} "
        f"{shown.measured_ms:.4g} ms; raise the budget"
    )


def _report(approach: Approach, search: FinishedSearch) -> list[dict[str, Any]]:
    return [
        {
            "network": search.network(r.network).hash,
            "target_ms": approach.target_ms,
            "aimed_ms": r.aimed_ms,
            "corrected_ms": r.network.cost,
            "measured_ms": r.measured_ms,
            "drifted": r.drifted,
        }
        for r in approach.rounds
    ]
