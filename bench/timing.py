"""How is a latency measured so that it can be trusted?

All candidates are timed in rounds, each round in another random order, so that a slow spell of the
machine meets everyone. An anchor whose latency is known is timed beside every sample: when the
anchor is slow, the machine is, and the sample is taken again.
"""

import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapt.machine import processor_name
from adapt.progress import Progress, silent

PROTOCOL = 1  # raise when a change makes old and new measurements incomparable
WARM_UP = 3  # the first calls allocate memory: page faults made them twice as slow
RELIABLE = 0.1  # share of the median by which the medians of the rounds may differ
Call = Callable[[], object]
Clock = Callable[[], float]


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
        samples: Timed calls.
        rounds: Rounds the calls are spread over.
        drifted: Rounds whose calls count although the anchor stayed slow.
    """

    min_ms: float
    p10_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    p50_range_ms: tuple[float, float]
    samples: int
    rounds: int
    drifted: int

    @property
    def reliable(self) -> bool:
        """Whether the medians of the rounds agree within :data:`RELIABLE` of the median."""
        low, high = self.p50_range_ms
        return high - low <= RELIABLE * self.p50_ms

    @classmethod
    def of(cls, rounds: Sequence[Sequence[float]], drifted: int = 0) -> "Latency":
        """Summarise samples in milliseconds, given by round."""
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
            samples=len(samples),
            rounds=len(rounds),
            drifted=drifted,
        )


@dataclass(frozen=True)
class Protocol:
    """How much is measured.

    Attributes:
        rounds: Rounds over all candidates.
        round_ms: Calls of a candidate in one round go on for this long, at least two.
        drift: A round counts as drifted when the anchor exceeds its best by this share.
        retries: How often a drifted round is taken again.
    """

    rounds: int = 5
    round_ms: float = 100.0
    drift: float = 0.05
    retries: int = 2

    def __post_init__(self) -> None:
        assert self.rounds >= 1, self.rounds
        assert self.round_ms > 0, self.round_ms


@dataclass
class Anchor:
    """A call that always costs the same on an undisturbed machine.

    Keep one anchor for a whole measurement: ``best_ms`` is what it is compared with.

    Attributes:
        call: The call.
        calls: Timed calls per check, of which the fastest counts.
        clock: Time in seconds.
        best_ms: Fastest call so far.
    """

    call: Call
    calls: int = 3
    clock: Clock = time.perf_counter
    best_ms: float = field(default=float("inf"), init=False)

    def slowdown(self) -> float:
        """Time the anchor now and return by which share it exceeds its best."""
        now_ms = min(_time_ms(self.call, self.clock) for _ in range(self.calls))
        self.best_ms = min(self.best_ms, now_ms)
        return now_ms / self.best_ms - 1


@dataclass
class _Samples:
    """What was measured of one candidate so far."""

    rounds: list[list[float]] = field(default_factory=list)
    drifted: int = 0


def measure(
    candidates: Mapping[str, Call],
    protocol: Protocol,
    *,
    anchor: Anchor | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> dict[str, Latency]:
    """Time all candidates in interleaved rounds.

    Args:
        candidates: What to time, by name.
        protocol: How much to measure.
        anchor: Timed after every sample; without one, drift is not seen.
        seed: Seed of the orders.
        clock: Time in seconds.
        progress: Called with (done, total) after every sample.

    Returns:
        The latency of each candidate, in the order of ``candidates``.
    """
    samples = {name: _Samples() for name in candidates}
    for call in candidates.values():
        for _ in range(WARM_UP):
            call()
    for done, name in enumerate(_schedule(list(candidates), protocol.rounds, seed), start=1):
        _sample_round(candidates[name], protocol, anchor, clock, samples[name])
        progress(done, protocol.rounds * len(candidates))
    return {name: Latency.of(taken.rounds, taken.drifted) for name, taken in samples.items()}


def _schedule(names: list[str], rounds: int, seed: int) -> list[str]:
    orders = random.Random(seed)
    return [name for _ in range(rounds) for name in orders.sample(names, len(names))]


def _sample_round(
    call: Call, protocol: Protocol, anchor: Anchor | None, clock: Clock, into: _Samples
) -> None:
    for _ in range(1 + protocol.retries):
        taken = _repeat(call, protocol.round_ms, clock)
        drifted = anchor is not None and anchor.slowdown() > protocol.drift
        if not drifted:
            break
    into.rounds.append(taken)
    into.drifted += drifted


def _repeat(call: Call, budget_ms: float, clock: Clock) -> list[float]:
    call()  # not timed: its data had left the caches
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < budget_ms:
        taken.append(_time_ms(call, clock))
    return taken


def _time_ms(call: Call, clock: Clock) -> float:
    start = clock()
    call()
    return (clock() - start) * 1000


def device_description() -> dict[str, Any]:
    """Return what of this machine influences a latency; unknown values are left out."""
    description = {
        "device": processor_name(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
    }
    return {name: value for name, value in description.items() if value is not None}


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
