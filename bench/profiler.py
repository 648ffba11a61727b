"""How long does every unit of a search space take on this machine? (ONNX Runtime on its CPU)"""

import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from adapt.cost import space_units
from adapt.cost_table import Conditions, CostTable, UnitCost
from adapt.detector import DetectorConfig
from adapt.errors import AdaptError
from adapt.images import InputSize
from adapt.machine import processor_name
from adapt.progress import Progress, silent
from adapt.space import SearchSpace
from adapt.units import MBConvUnit, Rest, Unit, unit_key
from bench.interpolate import interpolate
from bench.timing import (
    PROTOCOL,
    Anchor,
    Call,
    Latency,
    Protocol,
    measure,
)
from bench.unit_graphs import random_inputs, unit_model
from export.runner import bound_call, ort_session

# About 20 ms a unit: a few thousand units take a minute or two. No immediate retries: a slow spell
# outlasts them, so units that met one are measured again at the end.
UNIT_PROTOCOL = Protocol(rounds=3, round_ms=3.0, retries=0)
# Larger than a core's caches: a small one does not notice that others use up the memory bandwidth.
ANCHOR = MBConvUnit(24, 24, 3, 6, 1, True, 64, 80)
CHUNK = 24  # units whose sessions are open at once, so that their rounds interleave
CHUNK_SECONDS = 1.0  # about as much work as a kill may lose
HELD_OUT = 40  # units off the grid that are measured to tell how well interpolation does
REST_SECONDS = 5.0  # exporting the rest of the detector through torch.onnx


@dataclass(frozen=True)
class ProfilePlan:
    """What there is to measure.

    Attributes:
        space: Distinct units of the space.
        units: Those that are measured, because they lie on the grid and in the shard.
        to_measure: Those of them that the table lacks.
    """

    space: tuple[Unit, ...]
    units: tuple[Unit, ...]
    to_measure: tuple[Unit, ...]

    @property
    def measured(self) -> int:
        """Number of units that the table already holds."""
        return len(self.units) - len(self.to_measure)

    @property
    def between(self) -> list[Unit]:
        """Units that lie off the grid and are interpolated."""
        on_grid = set(self.units)
        return [unit for unit in self.space if unit not in on_grid]


@dataclass(frozen=True)
class ProfileSummary:
    """What :func:`profile` did.

    Attributes:
        table: The SQLite file.
        conditions: Under which conditions it was measured.
        units: Distinct units of the space, all of which the table now holds.
        measured: Units measured in this run.
        interpolated: Units whose cost was interpolated.
        drifted: Those of them that met a slow machine in most rounds, and again at the end.
        seconds: Duration of this run.
    """

    table: Path
    conditions: Conditions
    units: int
    measured: int
    interpolated: int
    drifted: int
    seconds: float


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a measurement that several equal machines share, from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``2/4``.

        Raises:
            AdaptError: If the text has another form or the number lies outside.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise AdaptError(f"--shard must be like 2/4, the second of four, got {text!r}")

    @classmethod
    def from_environment(cls) -> "Shard":
        """Return this task's part in a SLURM job array, or the whole outside of one."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        if not all(name in os.environ for name in names):
            return cls()
        task, first, count = (int(os.environ[name]) for name in names)
        return cls(task - first + 1, count)

    def of(self, units: Sequence[Unit]) -> Sequence[Unit]:
        """Return every ``count``-th unit, so that shards take about equally long."""
        return units[self.number - 1 :: self.count]


WHOLE = Shard()


def plan(
    space: SearchSpace,
    detector: DetectorConfig,
    size: InputSize,
    table: CostTable | None = None,
    shard: Shard = WHOLE,
    grid: int = 1,
) -> ProfilePlan:
    """Plan a measurement.

    Args:
        space: The search space.
        detector: The detector around the backbone.
        size: Letterbox of the detector.
        table: What was measured before.
        shard: Part of the units to measure.
        grid: Only widths that are multiples of this, and the ends of each range, are measured.
    """
    everything = space_units(space, detector, size)
    units = shard.of(space_units(space.on_grid(grid), detector, size))
    left = units if table is None else table.missing(units, interpolated_too=True)
    return ProfilePlan(tuple(everything), tuple(units), tuple(left))


def estimate_seconds(
    plan: ProfilePlan, *, threads: int = 1, sample: int = 12, seed: int = 0
) -> float:
    """Return how long a plan will take, from measuring a few of its units for real."""
    shuffled = _shuffled(plan.to_measure, seed)
    chosen = [unit for unit in shuffled if not isinstance(unit, Rest)][:sample]
    if not chosen:
        return REST_SECONDS * len(plan.to_measure)
    timer = _UnitTimer(threads, UNIT_PROTOCOL, seed)
    start = time.perf_counter()
    timer.chunk(chosen)
    per_unit = (time.perf_counter() - start) / len(chosen)
    rest = any(isinstance(unit, Rest) for unit in plan.to_measure)
    return per_unit * len(plan.to_measure) + REST_SECONDS * rest


def profile(
    space: SearchSpace,
    detector: DetectorConfig,
    size: InputSize,
    table_path: Path,
    *,
    threads: int = 1,
    protocol: Protocol = UNIT_PROTOCOL,
    seed: int = 0,
    shard: Shard = WHOLE,
    grid: int = 1,
    progress: Progress = silent,
) -> ProfileSummary:
    """Measure every unit of a space that the table lacks; a stopped run continues where it was.

    Units that were measured while the machine was slow are measured once more at the end, and the
    faster of both rows stays.

    Args:
        space: The search space, thinned to its width grid.
        detector: The detector around the backbone.
        size: Letterbox of the detector.
        table_path: SQLite file; made if there is none.
        threads: Threads ONNX Runtime computes with.
        protocol: How much to measure of each unit.
        seed: Seed of the order of measurement.
        shard: Part of the units to measure.
        grid: Only widths that are multiples of this, and the ends of each range, are measured; the
            others are interpolated, and some of them measured to tell how well.
        progress: Called with (units in the table, units of the space), then with those measured
            again on top.

    Raises:
        AdaptError: If the table was measured under other conditions, or cannot be written.
    """
    start = time.perf_counter()
    conditions = ort_cpu_conditions(size, threads)
    with _open_or_create(table_path, conditions) as table:
        work = plan(space, detector, size, table, shard, grid)
        timer = _UnitTimer(threads, protocol, seed)
        slow = _measure_into(table, work.to_measure, timer, work.measured, progress)
        still_slow = _measure_into(table, slow, timer, len(work.units), progress)
        filled = _interpolate_into(table, work, timer, seed) if shard == WHOLE else 0
    return ProfileSummary(
        table=table_path,
        conditions=conditions,
        units=len(work.space),
        measured=len(work.to_measure),
        interpolated=filled,
        drifted=len(still_slow),
        seconds=time.perf_counter() - start,
    )


def _interpolate_into(table: CostTable, work: ProfilePlan, timer: "_UnitTimer", seed: int) -> int:
    """Fill in the units off the grid, measure some of them to tell how well; return how many."""
    between = table.missing(work.between)
    if not between:
        return 0
    on_grid = {unit: cost for unit in work.units if (cost := table.find(unit)) is not None}
    guesses = interpolate(on_grid, between)
    held_out = _shuffled(between, seed)[:HELD_OUT]
    truth = {unit: cost for chunk in timer.chunks(held_out) for unit, cost in chunk.items()}
    errors = [guesses[unit].min_ms / cost.min_ms - 1 for unit, cost in truth.items()]
    table.add({**guesses, **truth})
    found = {
        "held_out": len(errors),
        "mape": sum(map(abs, errors)) / len(errors),
        "bias": sum(errors) / len(errors),
        "worst": max(map(abs, errors)),
    }
    table.store_certificate(found, of="interpolation")
    return len(between) - len(held_out)


def _measure_into(
    table: CostTable, units: Sequence[Unit], timer: "_UnitTimer", done: int, progress: Progress
) -> list[Unit]:
    """Measure units, keep the faster row of each, and return those that met a slow machine."""
    total, slow = done + len(units), []
    for costs in timer.chunks(units):
        table.add({unit: _faster(table.find(unit), cost) for unit, cost in costs.items()})
        slow += [unit for unit, cost in costs.items() if 2 * cost.drifted > cost.rounds]
        done += len(costs)
        progress(done, total, f"{len(slow)} met a slow machine")
    return slow


def _faster(before: UnitCost | None, now: UnitCost) -> UnitCost:
    return before if before is not None and before.min_ms < now.min_ms else now


def ort_cpu_conditions(size: InputSize, threads: int) -> Conditions:
    """Return the conditions of a measurement with ONNX Runtime on this machine's CPU.

    Raises:
        AdaptError: If ``threads`` is not positive, or the input no letterbox.
    """
    if threads < 1:
        raise AdaptError(f"threads must be at least 1, got {threads}; 1 measures most precisely")
    if size != size.fixed():
        fixed = size.fixed()
        raise AdaptError(
            f"units are measured at a fixed input size, got {size.resize} {size.height}x"
            f"{size.width}; use the letterbox {fixed.height}x{fixed.width}"
        )
    return Conditions(
        runtime="ort-cpu",
        precision="fp32",
        batch=1,
        threads=threads,
        device=processor_name(),
        height=size.height,
        width=size.width,
        runtime_version=_onnxruntime_version(),
        protocol=PROTOCOL,
    )


def _onnxruntime_version() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise AdaptError("ONNX Runtime is not installed; run `pip install onnxruntime`")


def _open_or_create(path: Path, conditions: Conditions) -> CostTable:
    if not path.exists():
        return CostTable.create(path, conditions)
    table = CostTable.open(path, writable=True)
    try:
        table.check_resumable(conditions)
    except AdaptError:
        table.close()
        raise
    return table


class _UnitTimer:
    """Times units against one anchor."""

    def __init__(self, threads: int, protocol: Protocol, seed: int) -> None:
        self._threads = threads
        self._protocol = protocol
        self._seed = seed
        self._anchor = Anchor(ort_call(unit_model(ANCHOR), threads))
        for _ in range(10):
            self._anchor.slowdown()

    def chunks(self, units: Sequence[Unit]) -> Iterator[dict[Unit, UnitCost]]:
        """Yield the costs of all units in random order, about :data:`CHUNK_SECONDS` at a time."""
        left = _shuffled(units, self._seed)
        size = CHUNK // 2
        while left:
            chunk, left = left[:size], left[size:]
            start = time.perf_counter()
            yield self.chunk(chunk)
            per_unit = (time.perf_counter() - start) / len(chunk)
            size = min(CHUNK, max(1, round(CHUNK_SECONDS / per_unit)))

    def chunk(self, units: Sequence[Unit]) -> dict[Unit, UnitCost]:
        """Return the costs of units, measured in interleaved rounds."""
        calls = {unit_key(unit): ort_call(unit_model(unit), self._threads) for unit in units}
        latencies = measure(calls, self._protocol, anchor=self._anchor, seed=self._seed)
        return {unit: _unit_cost(latencies[unit_key(unit)]) for unit in units}


def _unit_cost(latency: Latency) -> UnitCost:
    return UnitCost(
        min_ms=latency.min_ms,
        p10_ms=latency.p10_ms,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        samples=latency.samples,
        rounds=latency.rounds,
        drifted=latency.drifted,
    )


def _shuffled(units: Sequence[Unit], seed: int) -> list[Unit]:
    return random.Random(seed).sample(list(units), len(units))


def ort_call(model: bytes, threads: int) -> Call:
    """Return a call that runs a model on random inputs with ONNX Runtime on the CPU."""
    return bound_call(ort_session("ort-cpu", model, threads), random_inputs(model), "ort-cpu")
