"""Which network is measured next, on the way to a latency budget?"""

from collections.abc import Callable
from dataclasses import dataclass, field

from search.derive.exact import Derived, Deriver

TOLERANCE = 0.03  # share of the target that a verified network may be faster
AIM = 1 - TOLERANCE / 2  # in the middle, so that noise leads to neither side
BELOW = 1 - 1e-9  # a budget that just excludes a cost


@dataclass(frozen=True)
class Round:
    """One measured network.

    Attributes:
        network: What was measured.
        aimed_ms: What its prediction had to stay within.
        measured_ms: Minimum latency.
        drifted: Whether the machine was slow in most rounds, each time it was tried.
    """

    network: Derived
    aimed_ms: float
    measured_ms: float
    drifted: bool = False


@dataclass
class Approach:
    """Approaches a latency from both sides, along the best networks of all budgets.

    Attributes:
        deriver: Finds the best network of a budget, in ms as the table's certificate corrects them.
        target_ms: The latency to meet.
        rounds: What was measured so far; twice where a slow machine may be why a network did not
            fit.
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
        fits = [r for r in self.known if r.measured_ms <= self.target_ms]
        return max(fits, key=lambda r: r.network.score, default=None)

    @property
    def above(self) -> Round | None:
        """The cheapest network by the table, dearer than the best, that was measured not to fit."""
        least = self.best.network.cost if self.best else 0.0
        found = [r for r in self.known if r.measured_ms > self.target_ms]
        found = [r for r in found if r.network.cost > least]
        return min(found, key=lambda r: r.network.cost, default=None)

    @property
    def met(self) -> bool:
        """Whether the best network is close enough."""
        return self.best is not None and self.below <= TOLERANCE

    @property
    def below(self) -> float:
        """By which share of the target the best network is faster."""
        assert self.best is not None
        return 1 - self.best.measured_ms / self.target_ms

    def aimed_ms(self) -> float:
        """Return what the table may say, corrected by the measurement closest to the target."""
        aimed = AIM * self.target_ms
        if not self.rounds:
            return aimed
        closest = min(self.known, key=lambda r: abs(r.measured_ms - self.target_ms))
        return aimed * closest.network.cost / closest.measured_ms

    def following(self) -> Derived | None:
        """Return the network to measure next, or None if none is left that could be better."""
        return self._unmeasured() or self._doubtful()

    def _unmeasured(self) -> Derived | None:
        low = self.best.network.cost if self.best else self.deriver.cheapest / BELOW
        high = self.above.network.cost * BELOW if self.above else self.deriver.dearest / BELOW
        if high < self.deriver.cheapest:
            return None
        dearest = self.deriver.best(high)
        if self._times(dearest):
            return None
        aimed = min(max(self.aimed_ms(), low), high)
        found = self.deriver.best(aimed)
        return self._next(aimed, dearest) if self._times(found) else found

    def _doubtful(self) -> Derived | None:
        """Return the network that bounds the best one, if only a slow machine says it does."""
        above = self.above
        return above.network if above and above.drifted and self._times(above.network) < 2 else None

    def _next(self, low: float, dearest: Derived) -> Derived:
        """Return (nearly) the cheapest best network above the budget ``low``."""
        found, high = dearest, dearest.cost
        for _ in range(10):
            middle = (low + high) / 2
            tried = self.deriver.best(middle)
            if self._times(tried):
                low = middle
            else:
                found, high = tried, min(middle, tried.cost)
        return found

    def _times(self, network: Derived) -> int:
        """Return how often a network was measured."""
        return sum(r.network.choices == network.choices for r in self.rounds)

    def run(self, measure: Callable[[Derived], tuple[float, bool]], limit: int) -> None:
        """Measure until the target is met, or cannot be met more closely.

        Args:
            measure: Returns latency in milliseconds, and whether the machine was slow meanwhile.
            limit: Most measurements.
        """
        while not self.met:
            network = self.following()
            if network is None:
                self.outcome = self._why_no_closer()
                return
            if len(self.rounds) == limit:
                self.outcome = f"not closer after {limit} measurements"
                return
            self.rounds.append(Round(network, self.aimed_ms(), *measure(network)))
        self.outcome = f"within {TOLERANCE:.0%} below the target"

    def _why_no_closer(self) -> str:
        if self.above is None:
            return "the most probable network of the search needs no more"
        return (
            "no network of the search lies closer: the next better one takes "
            f"{self.above.measured_ms:.4g} ms"
        )
