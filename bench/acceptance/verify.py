"""How is a latency budget met by measurement, when the cost table is biased? (`derive --verify`)

Derive the best network whose predicted latency is within the budget, measure the whole detector,
correct the prediction by the measurement, and repeat. The statistic is the table's: the minimum
over interleaved rounds.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.acceptance.approach import BELOW, Approach
from bench.acceptance.stopwatch import Stopwatch, as_certified
from bench.latency.workers import Measurement
from search.derive.exact import Derived
from search.derive.finished import FinishedSearch, SearchFiles
from search.recipe.budget import Budget

MEASUREMENTS = 8


def derive_verified(
    files: SearchFiles,
    out: Path,
    budget: Budget | None,
    *,
    limit: int = MEASUREMENTS,
    how: Measurement | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the best network whose measured latency is within a budget to ``out``.

    Args:
        files: The search, and the cost table of this machine.
        out: Architecture file to write.
        budget: The latency to meet, in milliseconds.
        limit: Most networks to measure.
        how: How to measure; as the table's certificate was if None.
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
        search = stack.enter_context(files.open())
        search.deriver("ms")  # tells what is missing
        how = how or as_certified(search.recipe, files.costs)
        watch = stack.enter_context(Stopwatch(search, how))
        approach = approached(search, budget, watch, limit, progress)
        best = approach.best
        assert best is not None
        architecture = search.network(best.network.choices)
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
        found = watch.one(search.network(network.choices))
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
            "network": search.network(r.network.choices).hash,
            "target_ms": approach.target_ms,
            "aimed_ms": r.aimed_ms,
            "corrected_ms": r.network.cost,
            "measured_ms": r.measured_ms,
            "drifted": r.drifted,
        }
        for r in approach.rounds
    ]
