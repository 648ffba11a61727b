"""How is every unit of a search space measured into a cost table?"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.table import Conditions, CostTable, UnitCost
from adapt.cost.units import Measurable, Unit, unit_key
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs.interpolate import interpolate
from bench.costs.selection import EVERYTHING, WHOLE, Part, Selection, select, shuffled
from bench.latency.backend import Backend, conditions
from bench.latency.provenance import device_description
from bench.latency.timing import Latency, Protocol
from bench.latency.workers import Failure, Measurement, Workers

# A few thousand units take minutes. No retries within a round: a slow spell of the machine outlasts
# them. Units that met one are measured again at the end.
CPU_PROTOCOL = Protocol(rounds=3, round_ms=12.0, retries=0)
# About fifty samples; each is the mean of as many runs as take a millisecond.
GPU_PROTOCOL = Protocol(rounds=5, round_ms=10.0, retries=2, warm_up_ms=200.0)
CHUNK = 24  # most units that are measured together, in interleaved rounds
CHUNK_SECONDS = 1.0  # of work on a CPU between two writes to the table: what a kill may lose
SPREAD = 0.1  # a unit whose samples are further apart is measured again on a GPU
HELD_OUT = 60  # inferred units that are measured too, to tell the error of inference
REPEATS = 4  # how often a unit that met a slow machine is measured again, at most
ROW_BYTES = 200  # of a row in the SQLite file


@dataclass(frozen=True)
class ProfileSummary:
    """What :func:`profile` did.

    Attributes:
        table: The SQLite file.
        conditions: Under which conditions it was measured.
        units: Distinct units of the space, and of the source's own detector.
        measured: Rows measured in this run: units and boundaries.
        inferred: Units whose cost was inferred in this run.
        drifted: Rows that met a slow machine in most rounds, and again whenever they were repeated.
        failed: Why a unit could not be measured, by the unit's key.
        slower: How much slower the anchor was at its best than in the fastest run of the table; 0.1
            is 10 %. On a GPU the two may have had other clocks, and their rows differ by as much.
        seconds: Duration of this run.
    """

    table: Path
    conditions: Conditions
    units: int
    measured: int
    inferred: int
    drifted: int
    failed: dict[str, str]
    slower: float
    seconds: float


def unit_protocol(backend: Backend) -> Protocol:
    """Return how much is measured of each unit on a backend."""
    return GPU_PROTOCOL if backend.isolated else CPU_PROTOCOL


def estimate_seconds(selection: Selection, how: Measurement) -> float:
    """Return how long measuring a selection will take, from measuring a chunk of its units.

    Raises:
        AdaptError: If the backend cannot measure on this machine.
    """
    units = next(_chunks(selection.to_measure, how), [])
    if not units:
        return 0.0
    how.backend.check()
    with Workers(how) as workers:
        workers.run({unit_key(units[0]): units[0]})  # not timed: starts processes
        start = time.perf_counter()
        workers.run({unit_key(unit): unit for unit in units})
        each = (time.perf_counter() - start) / len(units)
    return each * (len(selection.to_measure) + min(HELD_OUT, len(selection.to_infer)))


def _chunks(units: Sequence[Measurable], how: Measurement) -> Iterator[list[Measurable]]:
    """Yield units in random order: as many as are measured together."""
    left = shuffled(units, how.seed)
    size = CHUNK if how.backend.isolated else CHUNK // 2
    while left:
        chunk, left = left[:size], left[size:]
        start = time.perf_counter()
        yield chunk
        if not how.backend.isolated:  # there it is building that takes seconds, not measuring
            per_unit = (time.perf_counter() - start) / len(chunk)
            size = min(CHUNK, max(1, round(CHUNK_SECONDS / per_unit)))


def profile(
    detectors: DetectorSpace,
    table_path: Path,
    how: Measurement,
    part: Part = EVERYTHING,
    *,
    progress: Progress = silent,
) -> ProfileSummary:
    """Measure every unit that the table lacks; a stopped run continues where it was.

    Rows that were measured while the machine was slow are measured again at the end, and the
    faster of both stays.

    Args:
        detectors: The detectors whose units are measured, at a fixed input size.
        table_path: SQLite file; made if there is none.
        how: Where, how much and in which order.
        part: Which of the units are measured here. Some that are inferred are measured too, to
            tell the error of inference.
        progress: Called with rows done and rows in all, repeated ones on top.

    Raises:
        AdaptError: If the backend cannot measure here, or the table was measured under other
            conditions or cannot be written.
    """
    start = time.perf_counter()
    here = conditions(how.backend, detectors.size)
    with _open_or_create(table_path, here) as table:
        selection = select(detectors, table, part)
        with Workers(how, anchor_ms=table.anchor_ms) as workers:
            run = _Run(table, workers, progress)
            if selection.to_measure or selection.to_infer:
                run.record(part)
            run.measure(selection.to_measure, selection.done)
            inferred = run.infer(selection, part.grid) if part.shard == WHOLE else 0
            slower = workers.anchor_ms / table.anchor_ms - 1 if isfinite(workers.anchor_ms) else 0.0
    return ProfileSummary(
        table=table_path,
        conditions=here,
        units=selection.distinct,
        measured=len(selection.to_measure),
        inferred=inferred,
        drifted=run.drifted,
        failed=run.failed,
        slower=slower,
        seconds=time.perf_counter() - start,
    )


def _open_or_create(path: Path, here: Conditions) -> CostTable:
    if not path.exists():
        return CostTable.create(path, here)
    table = CostTable.open(path, writable=True)
    try:
        table.check_resumable(here)
    except AdaptError:
        table.close()
        raise
    return table


@dataclass
class _Run:
    """One run of :func:`profile`.

    Attributes:
        table: The table that is written.
        workers: Measure the units.
        progress: Called with rows done and rows in all.
        drifted: Rows that met a slow machine in their last measurement too.
        failed: Why a unit has no row, by the unit's key.
    """

    table: CostTable
    workers: Workers
    progress: Progress
    drifted: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def record(self, part: Part) -> None:
        """Store on which machine, when and under which load this run begins."""
        described: dict[str, Any] = {
            "time": time.time(),
            "seed": self.workers.how.seed,
            "shard": f"{part.shard.number}/{part.shard.count}",
            "grid": part.grid,
            **device_description(),
        }
        self.table.store("runs", [*self.table.runs, described])

    def measure(self, units: Sequence[Measurable], done: int) -> None:
        """Measure units, and those again that met a slow machine."""
        slow = self._measure_once(units, done)
        done += len(units)
        # Repetitions may double the work, not more: a machine can stay slow.
        repeats_left = len(units)
        for _ in range(REPEATS):
            repeats_left -= len(slow)
            if not slow or repeats_left < 0:
                break
            repeated = slow
            slow = self._measure_once(repeated, done)
            done += len(repeated)
        self.drifted += len(slow)

    def _measure_once(self, units: Sequence[Measurable], done: int) -> list[Measurable]:
        """Measure units into the table; return those that met a slow machine."""
        total, slow = done + len(units), []
        anchor_ms: dict[Measurable, float] = {}  # the anchor's best when a unit was measured
        for chunk in _chunks(units, self.workers.how):
            outcomes = self.workers.run({unit_key(unit): unit for unit in chunk})
            rows: dict[Measurable, UnitCost] = {}
            for unit in chunk:
                outcome = outcomes[unit_key(unit)]
                if isinstance(outcome, Failure):
                    self.failed[unit_key(unit)] = outcome.reason
                    continue
                rows[unit] = _faster(self.table.find(unit), _row(outcome))
                anchor_ms[unit] = outcome.anchor_ms
                if self._unsteady(outcome):
                    slow.append(unit)
            self.table.add(rows)
            self.table.store("anchor_ms", min(self.table.anchor_ms, self.workers.anchor_ms))
            done += len(chunk)
            self.progress(done, total, f"{len(slow)} met a slow machine")
        # A machine that is slow from the start is noticed only once the anchor runs faster.
        limit = self.workers.anchor_ms * (1 + self.workers.how.protocol.drift)
        unnoticed = [unit for unit, best in anchor_ms.items() if best > limit]
        return list(dict.fromkeys([*slow, *unnoticed]))

    def _unsteady(self, latency: Latency) -> bool:
        apart = self.workers.how.backend.isolated and latency.spread > SPREAD
        return apart or latency.mostly_drifted

    def infer(self, selection: Selection, grid: int) -> int:
        """Infer what is not measured, measuring some of it to tell the error; return how many."""
        if not selection.to_infer or self.failed:
            return 0
        rows = self.table.rows()
        measured = {unit: rows[unit_key(unit)] for unit in selection.on_design}
        guesses = interpolate(measured, selection.space, grid)
        held_out = shuffled(selection.to_infer, self.workers.how.seed)[:HELD_OUT]
        self.measure(held_out, len(selection.of_shard))
        lacking = set(selection.to_infer)
        guesses = {unit: cost for unit, cost in guesses.items() if unit in lacking}
        self.table.add({u: c for u, c in guesses.items() if u not in set(held_out)})
        self.table.store("interpolation", self._errors(guesses, held_out))
        return len(guesses) - len(held_out)

    def _errors(self, guesses: dict[Unit, UnitCost], held_out: Sequence[Unit]) -> dict[str, Any]:
        """Return how far inferred costs are from measured ones, as shares of the latter."""
        rows = {unit: self.table.find(unit) for unit in held_out}
        # The light convolutions are in both rows; a share is of what the unit itself costs.
        errors = [
            (guesses[unit].min_ms - row.min_ms) / cost_ms
            for unit, row in rows.items()
            if row is not None and (cost_ms := self.table.lookup(unit)) > 0
        ]
        if not errors:  # all of them cost nothing, or could not be measured
            return {"held_out": 0}
        sizes = sorted(map(abs, errors))
        return {
            "held_out": len(errors),
            "mape": sum(sizes) / len(sizes),
            "bias": sum(errors) / len(errors),
            "p90": sizes[int(0.9 * (len(sizes) - 1))],
            "worst": sizes[-1],
        }


def _row(latency: Latency) -> UnitCost:
    return UnitCost(
        min_ms=latency.min_ms,
        p10_ms=latency.p10_ms,
        p50_ms=latency.p50_ms,
        p90_ms=latency.p90_ms,
        samples=latency.samples,
        rounds=latency.rounds,
        drifted=latency.drifted,
        clock_mhz=latency.state.clock_mhz,
        temperature_c=latency.state.temperature_c,
        throttled=latency.state.throttled,
    )


def _faster(before: UnitCost | None, now: UnitCost) -> UnitCost:
    if before is None or before.interpolated or now.min_ms <= before.min_ms:
        return now
    return replace(before, drifted=min(before.drifted, now.drifted))
