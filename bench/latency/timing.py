"""How often is something timed, and how is a slow machine noticed? (rounds, anchor, statistics)

All candidates are timed in rounds, each round in another random order, so that a slow spell of the
machine does not hit one candidate alone. An anchor, a call whose cost never changes, is timed
beside every sample: while it takes longer than at its best, the machine is slow, and the sample is
taken again.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from adapt.progress import Progress, silent
from bench.latency.interval import median_interval
from bench.latency.provenance import UNKNOWN_STATE, DeviceState

PROTOCOL = 2  # raise when a change makes old and new measurements incomparable
WARM_UP = 3  # untimed calls: the first ones allocate memory, and page faults double their time
WINDOW = 5  # calls; a candidate is warm when the medians of two windows in a row agree
HALF_WIDTH = 0.03  # share of the median that half of its interval may be wide
SLOW_ROUNDS = 0.2  # share of the rounds in which the machine may have stayed slow
Call = Callable[[], object]


class Sample(NamedTuple):
    """What a timer tells.

    Attributes:
        latency_ms: Latency of one run in milliseconds.
        elapsed_ms: How long taking the sample lasted. On a GPU this is many runs, whose mean is the
            latency; what limits the time of a measurement must count them all.
    """

    latency_ms: float
    elapsed_ms: float


Timer = Callable[[], Sample]


@dataclass(frozen=True)
class Latency:
    """Distribution of the latency of one candidate, in milliseconds.

    Attributes:
        min_ms: Minimum; the statistic that least depends on what else the machine does.
        p10_ms: 10th percentile.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_ms: Mean.
        p50_range_ms: Smallest and largest median of a round.
        p50_interval_ms: 95 % interval of the median, by a bootstrap over the rounds.
        samples: Timed calls.
        rounds: Rounds the calls are spread over.
        drifted: Rounds in which the machine was slow until the retries were used up; their calls
            count nevertheless.
        state: Clock, temperature and throttling of the device after the last sample.
        anchor_ms: The anchor's fastest call when the last round without drift was judged by it;
            infinite if every round drifted. If the anchor is faster in a later measurement, the
            machine was slow in this one, unnoticed.
        throttled: Rounds at whose end the device said, when the retries were used up, that it is
            slowed down for heat or a fault.
        warm_up: Untimed calls before the first round.
        settled: Whether they took equally long in the end; True if that was not asked.
        every_ms: Time from the start of a call to that of the next; 0 if they came back to back.
        late: Timed calls that took longer than that.
    """

    min_ms: float
    p10_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    p50_range_ms: tuple[float, float]
    p50_interval_ms: tuple[float, float]
    samples: int
    rounds: int
    drifted: int
    state: DeviceState = UNKNOWN_STATE
    anchor_ms: float = float("inf")
    throttled: int = 0
    warm_up: int = WARM_UP
    settled: bool = True
    every_ms: float = 0.0
    late: int = 0

    @property
    def reliable(self) -> bool:
        """Whether nothing speaks against the median."""
        return not self.doubts

    @property
    def doubts(self) -> list[str]:
        """Why the median is no number to go by; empty if it is one."""
        low, high = self.p50_interval_ms
        half = (high - low) / 2
        doubts = []
        if half > HALF_WIDTH * self.p50_ms:
            doubts.append(f"its 95 % interval is {half / self.p50_ms:.1%} of it wide to each side")
        if self.drifted > SLOW_ROUNDS * self.rounds:
            doubts.append(f"the machine stayed slow in {self.drifted} of {self.rounds} rounds")
        if self.throttled:
            doubts.append(f"the device stayed throttled in {self.throttled} rounds")
        return doubts

    @property
    def mostly_drifted(self) -> bool:
        """Whether the machine was slow in most rounds."""
        return 2 * self.drifted > self.rounds

    @property
    def spread(self) -> float:
        """How far apart the samples are: p90 / p10 - 1."""
        return self.p90_ms / self.p10_ms - 1

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], drifted: int = 0, **known: Any) -> "Latency":
        """Summarise samples in milliseconds, given by round.

        Args:
            rounds: The samples.
            drifted: Rounds in which the machine was slow.
            known: Fields that have a default.
        """
        samples = np.concatenate(rounds)
        medians = [float(np.median(taken)) for taken in rounds]
        minimum, p10, p50, p90, p95, p99 = np.percentile(samples, [0, 10, 50, 90, 95, 99]).tolist()
        return cls(
            min_ms=minimum,
            p10_ms=p10,
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            mean_ms=float(samples.mean()),
            p50_range_ms=(min(medians), max(medians)),
            p50_interval_ms=median_interval(rounds),
            samples=len(samples),
            rounds=len(rounds),
            drifted=drifted,
            **known,
        )


@dataclass(frozen=True)
class Protocol:
    """How much is measured.

    Attributes:
        rounds: Rounds over all candidates.
        round_ms: How long a candidate is called in one round; it is called twice at least.
        drift: The machine counts as slow when the anchor exceeds its best by this share.
        retries: How often a sample is taken again because the machine was slow.
        warm_up_ms: How long the anchor runs first, so that clocks have settled.
        settle_calls: How often a candidate is called before the first round at most, until it takes
            equally long; with 0 it is called :data:`WARM_UP` times, however long that takes.
        every_ms: Time from the start of a call to that of the next, as a camera gives it; with 0
            they follow back to back.
    """

    rounds: int = 5
    round_ms: float = 100.0
    drift: float = 0.02
    retries: int = 2
    warm_up_ms: float = 20.0
    settle_calls: int = 0
    every_ms: float = 0.0

    def __post_init__(self) -> None:
        assert self.rounds >= 1, self.rounds
        assert self.round_ms > 0, self.round_ms
        assert not 0 < self.settle_calls < 2 * WINDOW, self.settle_calls


@dataclass
class Anchor:
    """A call that always costs the same on an undisturbed machine.

    One anchor serves a whole measurement, since it is compared with its own fastest call.

    Attributes:
        timer: Times the call.
        calls: Most samples per check.
        best_ms: Fastest call so far, those of earlier measurements under the same conditions
            included.
    """

    timer: Timer
    # A shared machine has slow spells of a few milliseconds all the time. Only one that outlasts
    # these calls disturbs a sample.
    calls: int = 12
    best_ms: float = float("inf")

    def slow(self, drift: float) -> bool:
        """Return whether every call exceeds the best by more than the share ``drift``."""
        return all(
            self._sample().latency_ms > self.best_ms * (1 + drift) for _ in range(self.calls)
        )

    def warm_up(self, milliseconds: float) -> None:
        """Run the anchor for this long."""
        spent_ms = 0.0
        while spent_ms < milliseconds:
            spent_ms += self._sample().elapsed_ms

    def _sample(self) -> Sample:
        sample = self.timer()
        self.best_ms = min(self.best_ms, sample.latency_ms)
        return sample


@dataclass
class _Samples:
    """What was measured of one candidate so far."""

    rounds: list[list[float]] = field(default_factory=list)
    drifted: int = 0
    throttled: int = 0
    state: DeviceState = UNKNOWN_STATE
    anchor_ms: float = float("inf")
    warm_up: int = WARM_UP
    settled: bool = True

    def latency(self, every_ms: float) -> Latency:
        known = {name: value for name, value in vars(self).items() if name != "rounds"}
        late = sum(ms > every_ms for calls in self.rounds for ms in calls) if every_ms else 0
        return Latency.of(self.rounds, every_ms=every_ms, late=late, **known)


def wall_timer(call: Call, clock: Callable[[], float] = time.perf_counter) -> Timer:
    """Return a timer of a call that returns when its work is done."""

    def run() -> Sample:
        start = clock()
        call()
        milliseconds = (clock() - start) * 1000
        return Sample(milliseconds, milliseconds)

    return run


def paced_timer(
    timer: Timer,
    every_ms: float,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> Timer:
    """Return a timer that waits until its next call is due; what it waits counts as elapsed.

    In between caches are lost and clocks fall, as between the images of a camera. A call that
    comes late is followed by one that waits the whole time again: no queue builds up.
    """
    due = clock()

    def run() -> Sample:
        nonlocal due
        start = clock()
        if start < due:
            sleep(due - start)
        due = max(due, start) + every_ms / 1000
        latency_ms, _ = timer()
        return Sample(latency_ms, (clock() - start) * 1000)

    return run


def measure(
    candidates: Mapping[str, Timer],
    protocol: Protocol,
    *,
    anchor: Anchor | None = None,
    seed: int = 0,
    state: Callable[[], DeviceState] = lambda: UNKNOWN_STATE,
    progress: Progress = silent,
) -> dict[str, Latency]:
    """Time all candidates in interleaved rounds.

    Args:
        candidates: What to time, by name.
        protocol: How much to measure.
        anchor: Timed after every sample; without one, drift is not seen.
        seed: Seed of the orders.
        state: Reads clock, temperature and throttling, after every sample.
        progress: Called with (done, total) after every sample.

    Returns:
        The latency of each candidate, in the order of ``candidates``.
    """
    samples = {name: _warmed_up(timer, protocol) for name, timer in candidates.items()}
    if anchor is not None:
        anchor.warm_up(protocol.warm_up_ms)
    for done, name in enumerate(_schedule(list(candidates), protocol.rounds, seed), start=1):
        _add_round(samples[name], candidates[name], protocol, anchor, state)
        progress(done, protocol.rounds * len(candidates))
    return {name: taken.latency(protocol.every_ms) for name, taken in samples.items()}


def _warmed_up(timer: Timer, protocol: Protocol) -> _Samples:
    """Call a candidate until it is warm."""
    if not protocol.settle_calls:
        for _ in range(WARM_UP):
            timer()
        return _Samples()
    before = 0.0
    for calls in range(WINDOW, protocol.settle_calls + 1, WINDOW):
        median = float(np.median([timer().latency_ms for _ in range(WINDOW)]))
        if abs(median - before) <= protocol.drift * before:
            return _Samples(warm_up=calls)
        before = median
    return _Samples(warm_up=calls, settled=False)


def _schedule(names: list[str], rounds: int, seed: int) -> list[str]:
    orders = random.Random(seed)
    return [name for _ in range(rounds) for name in orders.sample(names, len(names))]


def _add_round(
    samples: _Samples,
    timer: Timer,
    protocol: Protocol,
    anchor: Anchor | None,
    state: Callable[[], DeviceState],
) -> None:
    """Sample a candidate for one round, again if the machine was slow meanwhile."""
    for _ in range(1 + protocol.retries):
        calls_ms = _repeat(timer, protocol.round_ms)
        slow = anchor is not None and anchor.slow(protocol.drift)
        samples.state = state()
        # A power cap lowers the clock for the anchor too, however often both are timed again.
        drifted = samples.state.slowed or (slow and not samples.state.capped)
        if not drifted:
            break
    samples.rounds.append(calls_ms)
    samples.drifted += drifted
    samples.throttled += samples.state.slowed
    if anchor is not None and not drifted:
        samples.anchor_ms = min(samples.anchor_ms, anchor.best_ms)


def _repeat(timer: Timer, duration_ms: float) -> list[float]:
    """Return latencies in milliseconds, of samples that took this long together."""
    timer()  # not counted: other candidates ran since, and its data had left the caches
    latencies_ms: list[float] = []
    left_ms = duration_ms
    while len(latencies_ms) < 2 or left_ms > 0:
        latency_ms, elapsed_ms = timer()
        latencies_ms.append(latency_ms)
        left_ms -= elapsed_ms
    return latencies_ms
