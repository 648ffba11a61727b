"""Which networks meet a latency, by measurement? (scaled by one factor, of scores, or drawn)"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from adapt.architecture import Block
from adapt.cost.expectation import CostModel
from adapt.detector.config import DetectorConfig
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.space import SearchSpace
from bench.acceptance.scaling import Held, Sized, scaled
from bench.acceptance.stopwatch import REPEATS
from bench.acceptance.verify import TOLERANCE as BELOW_TARGET
from bench.acceptance.verify import Approach
from bench.costs.recipe_table import as_certified
from bench.latency.subject import WholeDetector
from bench.latency.workers import Workers
from search.derive.chance import noise_deriver
from search.derive.exact import Derived, Deriver
from search.recipe.joint import Setting
from search.recipe.recipe import Recipe

TOLERANCE = 0.02  # share of the budget by which a network may be slower or faster
CLOSE = 0.01  # share at which the search for a factor ends
FACTORS = (0.1, 2.0)  # within which a factor is looked for
MEASUREMENTS = 10  # most networks to measure on the way to a budget
HOLDS = 2  # times that blocks are held at a step, and the others scaled on
DRAWS = 5  # most random networks; one that is unconstrained by the budget does not fill it


@dataclass(frozen=True)
class LatencyBudget:
    """A latency, or a share of the source's.

    Attributes:
        amount: Milliseconds, or percent.
        relative: Whether it is a share.
    """

    amount: float
    relative: bool

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> "LatencyBudget":
        """Read ``75%`` or ``12ms``.

        Raises:
            AdaptError: If the text has another form.
        """
        relative = text.endswith("%")
        try:
            amount = float(text.removesuffix("%" if relative else "ms"))
        except ValueError:
            amount = 0.0
        if not 0 < amount < float("inf") or not text.endswith(("%", "ms")):
            raise AdaptError(f"{option} must be like 75% (of the source) or 12ms, got {text!r}")
        return cls(amount, relative)

    def in_ms(self, source_ms: float) -> float:
        """Return it in milliseconds, of a source that takes ``source_ms``."""
        return self.amount / 100 * source_ms if self.relative else self.amount


@dataclass(frozen=True)
class Met:
    """A network that was measured beside a budget.

    Attributes:
        sized: The network.
        measured_ms: Its latency, the minimum.
        how: Factor, or how the approach ended.
    """

    sized: Sized
    measured_ms: float
    how: str


class BudgetMeter:
    """Finds networks that meet a latency; a context manager.

    Args:
        recipe: The recipe: input size, detector, device, space.
        classes: Object classes of its data.
        progress: Told after every measurement.
        source_ms: Latency of the source's detector, if it was measured before. All latencies are
            told as they were at the speed that the machine had then, or at the source's first
            measurement: every detector is measured in turns with the source, and takes its share of
            that. So budgets that are met on different occasions are equal although a machine's
            speed changes, and what disturbs the machine for seconds disturbs both.
    """

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        progress: Progress = silent,
        source_ms: float | None = None,
    ) -> None:
        self._recipe, self._classes, self._progress = recipe, classes, progress
        self._stack, self._known = ExitStack(), dict[str, tuple[float, bool]]()
        self._scaled = defaultdict[str, dict[float, Met]](dict)  # by factor
        self._source = scaled(recipe.source, "source", 0, recipe.setting)
        self._source_ms = source_ms

    def __enter__(self) -> Self:
        self._workers = self._stack.enter_context(Workers(as_certified(self._recipe, None)))
        self._workers.kept = self._subject(self._source)
        if self._source_ms is not None:
            self._known[self._key(self._source)] = self._source_ms, False
        return self

    def __exit__(self, *how: Any) -> None:
        self._stack.close()

    def measure(self, sized: Sized) -> tuple[float, bool]:
        """Return the latency of a detector in ms, and whether the machine was slow meanwhile."""
        key = self._key(sized)
        if key not in self._known:
            self._known[key] = self._measured(sized)
            if key == self._key(self._source):
                self._source_ms = self._known[key][0]
            self._progress(len(self._known), len(self._known), f"{self._known[key][0]:.4g} ms")
        return self._known[key]

    def _measured(self, sized: Sized) -> tuple[float, bool]:
        """Measure until the machine is not slow, :data:`REPEATS` times at most."""
        found = list[float]()
        for _ in range(REPEATS):
            if self._source_ms is None:
                (one_ms,), slow = self._timed(sized)
            else:
                (ms, source_ms), slow = self._timed(sized, self._source)
                one_ms = self._source_ms * ms / source_ms
            if not slow:
                return one_ms, False
            found.append(one_ms)
        return (statistics.median(found) if self._source_ms else min(found)), True

    def _timed(self, *detectors: Sized) -> tuple[list[float], bool]:
        """Return latencies in ms, measured in turns, and whether the machine was slow."""
        subjects = [self._subject(one) for one in detectors]
        name, fix = f"{detectors[0].architecture}", "free memory"
        latencies = self._workers.latencies(subjects, name=name, fix=fix)
        return [one.min_ms for one in latencies], any(one.mostly_drifted for one in latencies)

    def _subject(self, sized: Sized) -> WholeDetector:
        return WholeDetector(sized.architecture, self._config(sized), sized.setting.input.fixed())

    def _config(self, sized: Sized) -> DetectorConfig:
        return replace(self._recipe, detector=sized.detector).detector_config(self._classes)

    def _key(self, sized: Sized) -> str:
        return f"{sized.architecture.hash} {self._config(sized)} {sized.setting.input.fixed()}"

    def source_ms(self) -> float:
        """Return the latency of the source's detector in ms."""
        return self.measure(self._source)[0]

    def budget_ms(self, text: str) -> float:
        """Return a budget in ms: ``12ms``, or ``75%`` of the source's measured latency.

        Raises:
            AdaptError: If the text has another form.
        """
        budget = LatencyBudget.parse(text)
        return budget.in_ms(self.source_ms()) if budget.relative else budget.amount

    def by_factor(self, rule: str, setting: Setting, budget_ms: float) -> Met:
        """Return the source scaled by the factor whose latency is closest to the budget.

        What is scaled changes in steps. Where one passes over the budget, the others are scaled on
        without it: ``compound`` keeps head depth and pyramid of the closest network, and then
        blocks keep the widths they have below the budget, if they change right above it.
        """
        met = self._closest(rule, setting, budget_ms, {})
        if rule == "compound" and _off(met, budget_ms) > CLOSE:
            kept = met.sized.detector
            blocks = self._closest("width", met.sized.setting, budget_ms, {})
            how = f"{blocks.how} with fpn_width {kept.fpn_width} and head_depth {kept.head_depth}"
            met = min(met, replace(blocks, how=how), key=lambda one: _off(one, budget_ms))
        held: dict[int, int] = {}
        for _ in range(HOLDS):
            if _off(met, budget_ms) <= CLOSE:
                break
            held |= self._stepping(met.sized.setting, budget_ms, held)
            blocks = self._closest("width", met.sized.setting, budget_ms, held)
            how = f"{blocks.how}, blocks {_listed(held)} held, {met.how}"
            met = min(met, replace(blocks, how=how), key=lambda one: _off(one, budget_ms))
        return met

    def _closest(self, rule: str, setting: Setting, budget_ms: float, held: Held) -> Met:
        """Return the closest network; what another budget measured tells where to look for it."""
        known = self._scaled[_path(rule, setting, held)]

        def met(factor: float) -> Met:
            sized = scaled(self._recipe.source, rule, factor, setting, held)
            known[factor] = Met(sized, self.measure(sized)[0], f"factor {factor:.3f}")
            return known[factor]

        return closest_factor(met, budget_ms, dict(known))

    def _stepping(self, setting: Setting, budget_ms: float, held: Held) -> Held:
        """Return the blocks whose widths change where the budget is passed, and the lower widths.

        Of measured networks, these are those between the two around the budget.
        """
        known = self._scaled[_path("width", setting, held)]
        below = [factor for factor, met in known.items() if met.measured_ms <= budget_ms]
        low = self._narrowed(max(below, default=FACTORS[0]), setting, held)
        above = [factor for factor in known if not below or factor > max(below)]
        high = self._narrowed(min(above, default=FACTORS[1]), setting, held)
        return {
            number: a.width
            for number, (a, b) in enumerate(zip(low, high, strict=True))
            if a.width != b.width
        }

    def _narrowed(self, factor: float, setting: Setting, held: Held) -> Sequence[Block]:
        return scaled(self._recipe.source, "width", factor, setting, held).architecture.blocks

    def by_scores(
        self, deriver: Deriver, setting: Setting, space: SearchSpace, budget_ms: float
    ) -> Met:
        """Return the network of the highest score that takes at most 1.5 % more than the budget.

        It takes less than the budget where no network of a higher score takes more.

        Raises:
            AdaptError: If none was measured to fit.
        """
        met = self.fitting_by_scores(deriver, setting, space, budget_ms)
        if met is None:
            raise AdaptError(
                f"no network of the space was measured within {budget_ms:.4g} ms; raise the "
                "budget, or run it again when the machine is quiet"
            )
        return met

    def fitting_by_scores(
        self, deriver: Deriver, setting: Setting, space: SearchSpace, budget_ms: float
    ) -> Met | None:
        """Return what :meth:`by_scores` does, or None if none was measured to fit."""
        # An approach ends within 3 % below its target: centred on the budget.
        approach = Approach(deriver, budget_ms * (1 + BELOW_TARGET / 2))

        def measure(network: Derived) -> tuple[float, bool]:
            return self.measure(Sized(network.choices.architecture(space), setting))

        approach.run(measure, MEASUREMENTS)
        best = approach.best
        if best is None:
            return None
        sized = Sized(best.network.choices.architecture(space), setting)
        return Met(sized, best.measured_ms, approach.outcome)

    def by_chance(
        self,
        model: CostModel,
        setting: Setting,
        space: SearchSpace,
        budget_ms: float,
        chance: np.random.Generator,
    ) -> Met:
        """Return a random network that fills the budget: noise takes the place of scores."""
        drawn: list[Met] = []
        for _ in range(DRAWS):
            deriver = noise_deriver(model, space, chance)
            drawn.append(self.by_scores(deriver, setting, space, budget_ms))
            if _off(drawn[-1], budget_ms) <= TOLERANCE:
                break
        return min(drawn, key=lambda met: _off(met, budget_ms))


def closest_factor(
    met: Callable[[float], Met], budget_ms: float, known: Mapping[float, Met] | None = None
) -> Met:
    """Return the network whose latency is closest to a budget, by secants within a bracket.

    Args:
        met: Measures the network of a factor; slower for larger ones.
        budget_ms: The latency to meet.
        known: Networks that were measured before, by factor.
    """
    found = dict(known or {})
    for _ in range(MEASUREMENTS):
        if any(_off(one, budget_ms) <= CLOSE for one in found.values()):
            break
        factor = _next_factor({of: one.measured_ms for of, one in found.items()}, budget_ms)
        found[factor] = met(factor)
    return min(found.values(), key=lambda one: _off(one, budget_ms))


def _path(rule: str, setting: Setting, held: Held) -> str:
    """Return what networks of all factors have in common."""
    return f"{rule} {setting!r} {sorted(held.items())}"


def _listed(held: Held) -> str:
    return " and ".join(str(number + 1) for number in sorted(held))


def _off(met: Met, budget_ms: float) -> float:
    """Return by which share of a budget a network is slower or faster."""
    return abs(met.measured_ms / budget_ms - 1)


def _next_factor(measured_ms: Mapping[float, float], budget_ms: float) -> float:
    """Return the factor to try next."""
    if not measured_ms:
        return 1.0  # the source may be measured already
    low = max((factor for factor, ms in measured_ms.items() if ms <= budget_ms), default=FACTORS[0])
    above = [factor for factor, ms in measured_ms.items() if ms > budget_ms and factor > low]
    points = [(0.0, 0.0), *measured_ms.items()]  # nothing takes no time
    return _crossing(points, budget_ms, low, min(above, default=FACTORS[1]))


def _crossing(
    tried: Sequence[tuple[float, float]], budget_ms: float, low: float, high: float
) -> float:
    """Return where the line through the two points nearest to a budget meets it.

    Widths change in steps and measurements are noisy, so that it stays off the ends of the bracket.
    """
    (a, a_ms), (b, b_ms) = sorted(tried, key=lambda point: abs(point[1] - budget_ms))[:2]
    margin = 0.1 * (high - low)
    crossing = a + (budget_ms - a_ms) * (b - a) / (b_ms - a_ms) if a_ms != b_ms else 0.0
    return min(max(crossing, low + margin), high - margin)
