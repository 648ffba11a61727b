"""A device whose true costs are known, to test what measures: everything but a GPU's numbers.

* Roofline: a convolution takes as long as its arithmetic or its memory traffic, whichever is
  longer, plus the launch of a kernel.
* Tiles: it computes on channels padded to the next multiple of :data:`TILE`.
* Noise: every sample is a little too slow, by a random share (exponential).
* Drift: at random the device is slower by 4 to 30 % for :data:`SPELL_MS` at a time.
* Throttling: at random it is slower by half, and says so.
* Launch-bound: nothing takes less than the processor needs to launch it.

Time is virtual: it passes only while something is timed. One clock per process and device.
"""

import functools
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapt.cost.units import (
    P6,
    Boundary,
    Lateral,
    MBConvUnit,
    Rest,
    Stem,
    Unit,
    boundaries,
    detector_units,
    halve,
    madds,
    unit_key,
)
from bench.latency.provenance import DeviceState, Machine
from bench.latency.subject import Subject, WholeDetector
from bench.latency.timing import Sample, Timer

PEAK = 2e9  # multiply-adds per ms
BANDWIDTH = 1e8  # bytes per ms
LAUNCH_MS = 0.004
TILE = 16
SPELL_MS = 4000.0  # longer than the interleaved rounds of a chunk, so that waiting does not help
HALF = 2  # bytes
_broken: list[str] = []  # what fails everything in this process


def true_ms(subject: Subject) -> float:
    """What a subject costs inside of a detector; of a whole one, the sum of its units."""
    match subject:
        case WholeDetector(network, detector, size):
            return sum(map(true_ms, detector_units(network, detector, size)))
        case Stem(c_out, height, width):
            return _conv_ms(3, c_out, 3, (height, width), stride=2)
        case MBConvUnit(c_in, c_out, kernel, expansion, stride, _, height, width):
            into, out = (height, width), _out((height, width), stride)
            hidden = subject.hidden
            expand = _conv_ms(c_in, hidden, 1, into) if expansion != 1 else 0.0
            depthwise = _conv_ms(hidden, hidden, kernel, into, stride=stride, depthwise=True)
            return expand + depthwise + _conv_ms(hidden, c_out, 1, out)
        case Lateral(c_in, c_out, height, width):
            return _conv_ms(c_in, c_out, 1, (height, width))
        case P6(c_in, c_out, height, width):
            return _conv_ms(c_in, c_out, 3, (height, width), stride=2)
        case Rest():
            return madds(subject) / PEAK + 40 * LAUNCH_MS
        case Boundary():
            return 2 * _light_ms(subject)


def _measured_ms(subject: Subject) -> float:
    """What it costs between light convolutions, as the graphs of units have them."""
    if isinstance(subject, WholeDetector | Boundary):
        return true_ms(subject)
    return true_ms(subject) + sum(map(_light_ms, boundaries(subject)))


def _light_ms(end: Boundary) -> float:
    return _conv_ms(4, end.channels, 1, (end.height, end.width))


def _out(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return size if stride == 1 else (halve(size[0]), halve(size[1]))


@functools.cache
def _conv_ms(
    c_in: int,
    c_out: int,
    kernel: int,
    size: tuple[int, int],
    *,
    stride: int = 1,
    depthwise: bool = False,
) -> float:
    c_in, c_out = (-(-c // TILE) * TILE for c in (c_in, c_out))
    pixels_in, pixels_out = (h * w for h, w in (size, _out(size, stride)))
    weights = c_out * kernel**2 * (1 if depthwise else c_in)
    moved = HALF * (c_in * pixels_in + c_out * pixels_out + weights)
    return max(weights * pixels_out / PEAK, moved / BANDWIDTH) + LAUNCH_MS


@dataclass(frozen=True)
class Simulated:
    """A :class:`bench.latency.backend.Backend`.

    Attributes:
        noise: Mean share by which a sample is too slow.
        drift: Share of the time in which the device is slow without a word.
        throttling: Share of the time in which it is slow and says so.
        seed: Seed of all of these.
        launch_bound_ms: What everything takes at least.
        faults: What is to go wrong (``crash``, ``hang`` or ``error``) when a subject is built or
            measured, by ``build <unit key>`` or ``measure <unit key>``.
    """

    noise: float = 0.0
    drift: float = 0.0
    throttling: float = 0.0
    seed: int = 0
    launch_bound_ms: float = 0.0
    isolated: bool = False
    faults: tuple[tuple[str, str], ...] = ()
    runtime: str = "simulated"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 0

    def check(self) -> None:
        pass

    def version(self) -> str:
        return "1.0"

    def machine(self) -> Machine:
        return Machine("a simulated device", cores=1)

    def build(self, subject: Subject) -> Subject:
        self._fail_if_told("build", subject)
        return subject

    def load(self, built: Subject) -> Timer:
        self._fail_if_told("measure", built)
        cost, clock = max(_measured_ms(built), self.launch_bound_ms), _clock(self)

        def run() -> Sample:
            latency = cost * self.slowdown(clock.now_ms) * (1 + clock.noise(self.noise))
            clock.now_ms += latency
            return Sample(latency, latency)

        return run

    def state(self) -> DeviceState:
        spell = self._spell(_clock(self).now_ms)
        throttled = "hardware slowdown" if spell == "throttled" else ""
        return DeviceState(clock_mhz=1410.0, temperature_c=60.0, throttled=throttled)

    def slowdown(self, now_ms: float) -> float:
        match self._spell(now_ms):
            case "throttled":
                return 1.5
            case "drift":
                return 1.04 + 0.26 * self._chance(now_ms, "strength")
        return 1.0

    def _spell(self, now_ms: float) -> str:
        chance = self._chance(now_ms, "kind")
        if chance < self.throttling:
            return "throttled"
        return "drift" if chance < self.throttling + self.drift else ""

    def _chance(self, now_ms: float, of: str) -> float:
        return _random(f"{self.seed} {of} {now_ms // SPELL_MS}")

    def _fail_if_told(self, stage: str, subject: Subject) -> None:
        if _broken:
            raise RuntimeError(_broken[0])
        key = "detector" if isinstance(subject, WholeDetector) else unit_key(subject)
        match dict(self.faults).get(f"{stage} {key}"):
            case "crash":
                os._exit(11)
            case "hang":
                time.sleep(3600)
            case "error":
                error = "CUDA error: an illegal memory access was encountered\ntrace"
                if self.isolated:  # it outlives the call, in this process
                    _broken.append(error)
                raise RuntimeError(error)


def biased(timer: Timer, factor: float, offset_ms: float = 0.0) -> Timer:
    """What times the same, wrongly."""

    def run() -> Sample:
        latency_ms, _ = timer()
        latency_ms = latency_ms * factor + offset_ms
        return Sample(latency_ms, latency_ms)

    return run


@functools.lru_cache(maxsize=1024)
def _random(seed: str) -> float:
    return random.Random(seed).random()


@dataclass
class _Clock:
    now_ms: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def noise(self, mean: float) -> float:
        return self.chance.expovariate(1 / mean) if mean else 0.0


@functools.cache
def _clock(device: Simulated) -> _Clock:
    return _Clock(chance=random.Random(device.seed))


def reset() -> None:
    """Begin again at time 0."""
    _clock.cache_clear()


def relative_errors(costs: Mapping[Unit, float]) -> dict[Unit, float]:
    """How far costs in ms are from the truth, as shares of it."""
    return {unit: cost / true_ms(unit) - 1 for unit, cost in costs.items()}
