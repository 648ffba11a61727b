"""How is a latency budget met by measurement, since predictions are biased? (`derive --verify`)

Derive the best network whose predicted latency is within the budget, measure the whole detector,
correct the prediction by the measurement, and repeat. The latency is the minimum over interleaved
rounds, as in the cost table.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.acceptance.stopwatch import Stopwatch
from bench.costs.recipe_table import as_certified
from bench.latency.workers import Measurement
from search.derive.derive import draw_ledger
from search.derive.exact import Derived, Deriver
from search.derive.finished import FinishedSearch, SearchFiles
from search.recipe.budget import Budget

MEASUREMENTS = 8
TOLERANCE = 0.03  # share of the target by which a network may be faster and still meets it
AIM = 1 - TOLERANCE / 2  # the middle, so that noise is least likely to miss on either side
BELOW = 1 - 1e-9  # times a cost: the largest budget that excludes it


@dataclass(frozen=True)
class Round:
    """One measured network.

    Attributes:
        network: What was measured.
        target_ms: The latency that was to be met, by this network or another.
        aimed_ms: Predicted latency that the network had to stay within.
        measured_ms: Minimum latency.
        drifted: Whether the machine was slow in most rounds, each time it was tried.
    """

    network: Derived
    target_ms: float
    aimed_ms: float
    measured_ms: float
    drifted: bool = False


@dataclass
class Approach:
    """Approaches a latency from both sides, by measuring best networks of budgets.

    Those form a front, along which predicted latency and probability rise together. The network
    that is looked for lies between the most probable one that was measured to fit and the cheapest
    one (as predicted) that was not. Every measurement narrows this interval.

    Attributes:
        deriver: Finds the best network of a budget, in ms as the table's certificate corrects them.
        target_ms: The latency to meet.
        rounds: What was measured so far, on the way to other targets too. A network is measured
            twice if it did not fit and the machine was slow.
        outcome: How it ended, as a sentence.
    """

    deriver: Deriver
    target_ms: float
    rounds: list[Round] = field(default_factory=list)
    outcome: str = ""

    @property
    def known(self) -> list[Round]:
        """The fastest measurement of every network."""
        slowest_first = sorted(self.rounds, key=lambda r: -r.measured_ms)
        return list({r.network.choices: r for r in slowest_first}.values())

    @property
    def best(self) -> Round | None:
        """The most probable network that was measured to fit."""
        fitting = [r for r in self.known if r.measured_ms <= self.target_ms]
        return max(fitting, key=lambda r: r.network.score, default=None)

    @property
    def above(self) -> Round | None:
        """Of those that did not fit, and are predicted to cost more than the best, the cheapest."""
        best_cost = self.best.network.cost if self.best else 0.0
        too_slow = [r for r in self.known if r.measured_ms > self.target_ms]
        too_slow = [r for r in too_slow if r.network.cost > best_cost]
        return min(too_slow, key=lambda r: r.network.cost, default=None)

    @property
    def met(self) -> bool:
        """Whether the best network is close enough to the target."""
        return self.best is not None and self.below <= TOLERANCE

    @property
    def below(self) -> float:
        """By which share of the target the best network is faster."""
        assert self.best is not None
        return 1 - self.best.measured_ms / self.target_ms

    def aimed_ms(self) -> float:
        """Return the next budget, corrected by the measurement that is closest to the target."""
        aimed_ms = AIM * self.target_ms
        if not self.rounds:
            return aimed_ms
        closest = min(self.known, key=lambda r: abs(r.measured_ms - self.target_ms))
        return aimed_ms * closest.network.cost / closest.measured_ms

    def run(self, measure: Callable[[Derived], tuple[float, bool]], limit: int) -> None:
        """Measure until the target is met, or cannot be met more closely.

        Args:
            measure: Returns latency in milliseconds, and whether the machine was slow meanwhile.
            limit: Most measurements.
        """
        last = len(self.rounds) + limit
        while not self.met:
            network = self.next_network()
            if network is None:
                self.outcome = self._why_no_closer()
                return
            if len(self.rounds) == last:
                self.outcome = f"not closer after {limit} measurements"
                return
            aimed_ms = self.aimed_ms()
            self.rounds.append(Round(network, self.target_ms, aimed_ms, *measure(network)))
        self.outcome = f"within {TOLERANCE:.0%} below the target"

    def next_network(self) -> Derived | None:
        """Return the network to measure next, or None if none is left that could be better."""
        return self._unmeasured() or self._doubtful()

    def _unmeasured(self) -> Derived | None:
        """Return a network between the best one and the one above, near the corrected budget."""
        low = self.best.network.cost if self.best else self.deriver.cheapest / BELOW
        high = self.above.network.cost * BELOW if self.above else self.deriver.dearest / BELOW
        if high < self.deriver.cheapest:
            return None
        dearest = self.deriver.best(high)
        if self._times_measured(dearest):  # no network lies between
            return None
        aimed_ms = min(max(self.aimed_ms(), low), high)
        network = self.deriver.best(aimed_ms)
        return self._first_above(aimed_ms, dearest) if self._times_measured(network) else network

    def _first_above(self, low: float, dearest: Derived) -> Derived:
        """Return about the cheapest unmeasured network above the budget ``low``, by bisection."""
        network, high = dearest, dearest.cost
        for _ in range(10):
            middle = (low + high) / 2
            tried = self.deriver.best(middle)
            if self._times_measured(tried):
                low = middle
            else:
                network, high = tried, min(middle, tried.cost)
        return network

    def _doubtful(self) -> Derived | None:
        """Return the network above, if it may have been too slow only because the machine was."""
        above = self.above
        if above and above.drifted and self._times_measured(above.network) < 2:
            return above.network
        return None

    def _times_measured(self, network: Derived) -> int:
        return sum(r.network.choices == network.choices for r in self.rounds)

    def _why_no_closer(self) -> str:
        if self.above is None:
            return "the network of the highest score needs no more"
        return (
            "no network of the search lies closer: the next better one takes "
            f"{self.above.measured_ms:.4g} ms"
        )


def derive_verified(
    files: SearchFiles,
    budgets: Mapping[Path, Budget | None],
    *,
    limit: int = MEASUREMENTS,
    how: Measurement | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Write the best networks whose measured latencies are within budgets.

    What was measured on the way to one budget tells where to look for the next.

    Args:
        files: The search, and the cost table of this machine.
        budgets: The latency to meet, in milliseconds, by the architecture file to write.
        limit: Most networks to measure, of each budget.
        how: How to measure; as the table's certificate was if None.
        progress: Told after every measurement.

    Returns:
        Of each budget the network, its costs, how close it is, why no closer, and all measured
        rounds.

    Raises:
        AdaptError: If a budget is not in milliseconds, the table was measured elsewhere, or no
            network was measured to fit; networks of earlier budgets are written.
    """
    known: list[Round] = []
    found = []
    in_ms = {out: _in_ms(budget) for out, budget in budgets.items()}
    for out in budgets:
        make_folder(out.parent)  # before minutes of measurements, not after
    with ExitStack() as stack:
        search = stack.enter_context(files.open())
        search.deriver("ms")  # raises an error that names a table that is missing
        how = how or as_certified(search.recipe, files.costs)
        stopwatch = stack.enter_context(Stopwatch(search, how))
        for out, budget in in_ms.items():
            approach = approached(search, budget, stopwatch, limit, progress, known)
            found.append(_written(approach, budget, search, stopwatch, out))
            known = approach.rounds
    return found


def _in_ms(budget: Budget | None) -> Budget:
    """Return a budget that can be measured.

    Raises:
        AdaptError: If it is none.
    """
    if budget is None or budget.unit != "ms":
        raise AdaptError(
            "--verify measures latency and needs a budget in milliseconds, got "
            f"{budget or 'none'}; pass one such as --budget 4.0ms"
        )
    return budget


def _written(
    approach: Approach, budget: Budget, search: FinishedSearch, stopwatch: Stopwatch, out: Path
) -> dict[str, Any]:
    """Write the network that an approach ended with, and describe it."""
    best = approach.best
    assert best is not None
    architecture = search.network(best.network.choices)
    costs = {**search.costs(architecture), "measured_ms": best.measured_ms}
    rounds, why = _rows(approach, search), search.explained(architecture)
    architecture.save(
        out,
        rule=f"budget {budget}, verified",
        budget=asdict(budget),
        search=search.identity,
        costs=costs,
        measured_on=asdict(stopwatch.conditions),
        rounds=rounds,
        **why,
    )
    closeness = {"below_target": approach.below, "outcome": approach.outcome, "rounds": rounds}
    found = {"architecture": str(out), "network": str(architecture), **costs, **closeness}
    return {**found, **draw_ledger(why, out)}


def approached(
    search: FinishedSearch,
    budget: Budget,
    stopwatch: Stopwatch,
    limit: int = MEASUREMENTS,
    progress: Progress = silent,
    known: Sequence[Round] = (),
) -> Approach:
    """Measure networks of a search on the way to a budget in milliseconds.

    Args:
        search: A finished search with its cost table.
        budget: The target.
        stopwatch: Measures networks.
        limit: Most measurements.
        progress: Told after every measurement.
        known: What was measured on the way to other budgets.

    Returns:
        What was measured, with a best network.

    Raises:
        AdaptError: If no network was measured to fit.
    """
    approach = Approach(search.deriver("ms"), budget.amount, list(known))

    def measure(network: Derived) -> tuple[float, bool]:
        latency_ms, drifted = stopwatch.measure_one(search.network(network.choices))
        done = len(approach.rounds) - len(known) + 1
        progress(done, limit, f"{latency_ms:.4g} of {budget.amount:.4g} ms")
        return latency_ms, drifted

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
        f"no network was measured within {approach.target_ms:.4g} ms: {which} "
        f"{shown.measured_ms:.4g} ms; raise the budget, or run it again when the machine is quiet"
    )


def _rows(approach: Approach, search: FinishedSearch) -> list[dict[str, Any]]:
    return [
        {
            "network": search.network(r.network.choices).hash,
            "target_ms": r.target_ms,
            "aimed_ms": r.aimed_ms,
            "corrected_ms": r.network.cost,
            "measured_ms": r.measured_ms,
            "drifted": r.drifted,
        }
        for r in approach.rounds
    ]
