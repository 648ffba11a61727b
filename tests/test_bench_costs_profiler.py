import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import simulated_device
from profile_parts import (
    DETECTOR,
    DETECTORS,
    NETWORK,
    ORT,
    SIZE,
    SPACE,
    WIDE,
    WIDE_DETECTORS,
    measured_really,
    measurement,
    profiled,
)
from simulated_device import Simulated, relative_errors, true_ms

import bench.costs.profiler
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.merge import merge_tables
from adapt.cost.resolution import free_units
from adapt.cost.table import CostTable, predict_latency
from adapt.cost.units import boundaries, detector_units, unit_key
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from adapt.space import SearchSpace
from bench.costs.profiler import GPU_PROTOCOL, estimate_seconds
from bench.costs.selection import Part, Shard, select
from bench.latency.backend import OrtBackend, conditions
from bench.latency.timing import Latency

UNITS = DETECTORS.units()
MEASURABLE = select(DETECTORS).of_shard
RESTLESS = Simulated(noise=0.01, drift=0.2, throttling=0.1)


@pytest.fixture(autouse=True)
def _virtual_time_begins_again():
    simulated_device.reset()


def costs_in(path, units):
    with CostTable.open(path) as table:
        return {unit: table.lookup(unit) for unit in units}


@pytest.fixture(scope="module")
def real(made):
    """The tiny space, measured for real."""
    path = made / "real.sqlite"
    return path, measured_really(path)


class TestOnThisProcessor:
    def test_every_unit_and_boundary_is_measured_once(self, real):
        path, summary = real
        assert (summary.units, summary.measured) == (len(UNITS), len(MEASURABLE))
        with CostTable.open(path) as table:
            assert table.missing(MEASURABLE) == []
            assert len(table) == len(MEASURABLE)

    def test_rows_have_ordered_statistics_and_enough_samples(self, real):
        with CostTable.open(real[0]) as table:
            costs = table.rows().values()
        for cost in costs:
            assert 0 < cost.min_ms <= cost.p10_ms <= cost.p50_ms <= cost.p90_ms
            assert cost.samples >= 6
            assert cost.rounds == 3

    def test_a_second_run_measures_nothing(self, real):
        path, _ = real
        with CostTable.open(path) as table:
            before = table.hash
        assert profiled(path).measured == 0
        with CostTable.open(path) as table:
            assert table.hash == before
            assert len(table.runs) == 1

    def test_the_table_remembers_machine_and_load(self, real):
        with CostTable.open(real[0]) as table:
            (run,) = table.runs
            assert math.isfinite(table.anchor_ms)
        assert run["shard"] == "1/1"
        assert run["device"]
        assert run["load_average"] >= 0

    @pytest.mark.parametrize(
        ("size", "threads", "message"),
        [
            (SIZE, 2, r"threads = 1, this run has threads = 2; choose another file with --out"),
            (InputSize(96, 64), 1, r"height = 64, this run has height = 96"),
            (InputSize(800, 1333, "shortest-edge"), 1, r"use the letterbox 800x1344"),
        ],
    )
    def test_other_conditions_are_refused(self, real, size, threads, message):
        with pytest.raises(AdaptError, match=message):
            profiled(real[0], OrtBackend("ort-cpu", threads=threads), size=size)

    def test_estimate_is_positive_and_zero_for_a_finished_plan(self, real):
        work = select(DETECTORS)
        some = replace(work, to_measure=tuple(UNITS[:4]))
        assert estimate_seconds(some, measurement(ORT)) > 0
        with CostTable.open(real[0]) as table:
            assert estimate_seconds(select(DETECTORS, table), measurement(ORT)) == 0


def test_a_file_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "costs.sqlite"
    path.write_text("notes")
    with pytest.raises(AdaptError, match=r"costs\.sqlite is not a readable cost table"):
        profiled(path, Simulated())
    assert path.read_text() == "notes"


def test_prediction_is_the_sum_of_units_without_their_boundaries(tmp_path):
    profiled(tmp_path / "costs", Simulated())
    with CostTable.open(tmp_path / "costs") as table:
        rows = {key: cost.min_ms for key, cost in table.rows().items()}
        found = predict_latency(table, NETWORK, DETECTOR, SIZE)
    expected = 0.0
    for unit in detector_units(NETWORK, DETECTOR, SIZE):
        ends = sum(rows[unit_key(end)] for end in boundaries(unit))
        expected += rows[unit_key(unit)] - ends / 2
    assert found == pytest.approx(expected)


class TestOnARestlessDevice:
    @pytest.mark.parametrize("protocol", [None, GPU_PROTOCOL], ids=["cpu", "gpu"])
    def test_costs_are_within_one_percent_of_the_truth(self, tmp_path, protocol):
        summary = profiled(tmp_path / "costs", RESTLESS, space=WIDE, protocol=protocol)
        units = WIDE_DETECTORS.units()
        errors = relative_errors(costs_in(tmp_path / "costs", units))
        assert max(map(abs, errors.values())) < 0.01
        assert summary.drifted == 0

    def test_they_are_not_without_the_handling_of_drift(self, tmp_path):
        blind = replace(GPU_PROTOCOL, drift=math.inf)
        deaf = replace(RESTLESS, throttling=0.0, drift=0.3)
        profiled(tmp_path / "costs", deaf, space=WIDE, protocol=blind)
        units = WIDE_DETECTORS.units()
        errors = sorted(relative_errors(costs_in(tmp_path / "costs", units)).values())
        assert errors[-1] > 0.05
        assert sum(error > 0.02 for error in errors) > 0.05 * len(errors)

    def test_rows_that_met_a_lasting_drift_are_counted_and_work_at_most_doubles(self, tmp_path):
        path, steps = tmp_path / "costs", []
        slow = replace(RESTLESS, drift=1.0, throttling=0.0)
        profiled(path, Simulated())  # knows how fast the anchor can be
        with CostTable.open(path, writable=True) as table:
            table.add_rows({})
            table._connection.execute("DELETE FROM cost")
            table._connection.commit()
        summary = profiled(path, slow, progress=lambda *step: steps.append(step))
        assert summary.drifted == len(MEASURABLE)
        assert steps[-1][0] == steps[-1][1] == 2 * len(MEASURABLE)


def test_units_that_met_a_slow_machine_are_measured_again_and_the_faster_row_stays(
    tmp_path, monkeypatch
):
    slow, measured = unit_key(UNITS[0]), []
    times = iter([2.0, 1.0, 4.0, 4.0, 4.0])

    def run(self, subjects, **_):
        measured.extend(subjects)
        return {
            key: Latency.of([[next(times) if key == slow else 3.0]] * 3, 3 if key == slow else 1)
            for key in subjects
        }

    monkeypatch.setattr(bench.costs.profiler.Workers, "run", run)
    summary = profiled(tmp_path / "costs", Simulated())
    assert measured[len(MEASURABLE) :] == [slow] * 4
    assert summary.drifted == 1
    with CostTable.open(summary.table) as table:
        assert table.find(UNITS[0]).min_ms == 1.0


def test_states_of_the_device_are_stored(tmp_path):
    profiled(tmp_path / "costs", Simulated())
    with CostTable.open(tmp_path / "costs") as table:
        cost = table.find(UNITS[0])
    assert (cost.clock_mhz, cost.temperature_c, cost.throttled) == (1410.0, 60.0, "")


def test_an_interrupted_run_keeps_its_rows_and_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.costs.profiler, "CHUNK", 4)
    path = tmp_path / "costs.sqlite"

    def interrupt(done, total, note):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiled(path, Simulated(), progress=interrupt)
    with CostTable.open(path) as table:
        kept = len(table)
    steps = []
    summary = profiled(path, Simulated(), progress=lambda *step: steps.append(step))
    assert 6 <= kept < len(MEASURABLE)
    assert summary.measured == len(MEASURABLE) - kept
    assert [(done, total) for done, total, _ in steps][-1] == (len(MEASURABLE),) * 2


class TestChunks:
    """How many units are measured together where every one takes ten seconds to build."""

    @pytest.fixture
    def sizes(self, monkeypatch):
        sizes, clock = [], iter(range(0, 10**9, 240))

        def run(self, subjects, **_):
            sizes.append(len(subjects))
            return {key: Latency.of([[1.0]]) for key in subjects}

        monkeypatch.setattr(bench.costs.profiler.Workers, "run", run)
        monkeypatch.setattr(bench.costs.profiler.time, "perf_counter", lambda: next(clock))
        return sizes

    def test_on_a_gpu_they_are_full_whatever_building_takes(self, sizes, tmp_path):
        profiled(tmp_path / "costs", Simulated(isolated=True), space=WIDE)
        assert set(sizes[:-1]) == {24}

    def test_a_gpu_is_estimated_by_a_full_chunk(self, sizes):
        work = select(WIDE_DETECTORS)
        seconds = estimate_seconds(work, measurement(Simulated(isolated=True)))
        assert sizes == [1, 24]
        assert seconds == pytest.approx(240 / 24 * len(work.to_measure))

    def test_on_a_processor_they_shrink_to_what_a_kill_may_lose(self, sizes, tmp_path):
        profiled(tmp_path / "costs", Simulated(), space=SPACE)
        assert sizes[:3] == [12, 1, 1]


def test_a_launch_bound_device_is_measured_to_the_end_and_told_by_its_table(tmp_path):
    device = Simulated(launch_bound_ms=1.0)
    summary = profiled(tmp_path / "costs", device, space=WIDE, part=Part(grid=8))
    with CostTable.open(summary.table) as table:
        free, known = free_units(table, WIDE_DETECTORS.units())
        assert len(free) > 0.9 * known
        assert table.interpolation["held_out"] < 60


@pytest.mark.parametrize(("space", "grid"), [(SPACE, 1), (WIDE, 8)], ids=["all", "grid"])
def test_merged_shards_are_the_table_of_one_run(tmp_path, space, grid):
    profiled(tmp_path / "whole", Simulated(), space=space, part=Part(grid=grid))
    parts = []
    for number in (1, 2, 3, 4):
        simulated_device.reset()
        parts.append(tmp_path / f"part{number}")
        profiled(parts[-1], Simulated(), space=space, part=Part(Shard(number, 4), grid))
    merge_tables(parts, tmp_path / "merged")
    again = profiled(tmp_path / "merged", Simulated(), space=space, part=Part(grid=grid))
    assert again.measured == 0
    with CostTable.open(tmp_path / "merged") as merged, CostTable.open(tmp_path / "whole") as whole:
        found, expected = merged.rows(), whole.rows()
        assert found.keys() == expected.keys()
        assert {k for k, c in found.items() if c.interpolated} == {
            k for k, c in expected.items() if c.interpolated
        }
        for key, cost in found.items():
            assert cost.min_ms == pytest.approx(expected[key].min_ms)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """What was told of a profile that inferred most units; copy its table to write to it."""
    path = tmp_path_factory.mktemp("sparse") / "costs"
    simulated_device.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.costs.profiler, "HELD_OUT", 20)
        return profiled(path, Simulated(noise=0.005), space=WIDE, part=Part(grid=8))


class TestInference:
    def test_units_off_the_design_are_inferred_and_some_of_them_checked(self, sparse):
        work = select(WIDE_DETECTORS, part=Part(grid=8))
        assert sparse.measured == len(work.to_measure)
        with CostTable.open(sparse.table) as table:
            marked = [unit for unit in work.space if table.find(unit).interpolated]
            assert len(marked) == sparse.inferred == len(work.to_infer) - 20
            assert table.interpolation["held_out"] == 20
            assert table.missing(work.space) == []
            assert table.missing(work.space, inferred_too=True) == marked

    def test_the_check_tells_how_far_inferred_costs_are_from_the_truth(self, sparse):
        with CostTable.open(sparse.table) as table:
            stated = table.interpolation
            inferred = [u for u in sparse_units() if table.find(u).interpolated]
        errors = relative_errors(costs_in(sparse.table, inferred)).values()
        mape = sum(map(abs, errors)) / len(errors)
        assert 0.5 * mape < stated["mape"] < 2 * mape
        assert stated["mape"] <= stated["p90"] <= stated["worst"]

    def test_a_finer_grid_measures_what_was_inferred(self, sparse, tmp_path):
        path = Path(shutil.copy(sparse.table, tmp_path))
        fine = profiled(path, Simulated(noise=0.005), space=WIDE)
        assert (fine.measured, fine.inferred) == (sparse.inferred, 0)


def sparse_units():
    return WIDE_DETECTORS.units()


class TestInProcessesOfTheirOwn:
    def test_a_run_that_is_slower_than_an_earlier_one_says_by_how_much(self, tmp_path):
        device, path = Simulated(isolated=True), tmp_path / "costs"
        assert profiled(path, device, part=Part(Shard(1, 9))).slower == 0
        with CostTable.open(path, writable=True) as table:
            best = table.anchor_ms
            table.store("anchor_ms", 0.8 * best)  # at a clock that this run does not reach
        again = profiled(path, device, part=Part(Shard(2, 9)))
        assert (again.slower, again.drifted) == (pytest.approx(0.25), 0)
        with CostTable.open(path) as table:
            assert table.anchor_ms == 0.8 * best

    def test_a_crash_costs_one_row_and_is_reported(self, tmp_path):
        bad, worse = UNITS[3], UNITS[5]
        faults = (f"measure {unit_key(bad)}", "crash"), (f"build {unit_key(worse)}", "error")
        device = Simulated(isolated=True, faults=faults)
        summary = profiled(tmp_path / "costs", device, build_jobs=2)
        assert summary.failed == {
            unit_key(bad): "its process died (exit code 11)",
            unit_key(worse): "CUDA error: an illegal memory access was encountered",
        }
        good = [unit for unit in UNITS if unit not in (bad, worse)]
        errors = relative_errors(costs_in(tmp_path / "costs", good))
        assert max(map(abs, errors.values())) < 1e-9
        again = profiled(tmp_path / "costs", Simulated(isolated=True))
        assert (again.measured, again.failed) == (2, {})
        assert costs_in(tmp_path / "costs", UNITS)[bad] == pytest.approx(true_ms(bad))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path

sys.path[:0] = {path!r}
import profile_parts
from profile_parts import profiled
from simulated_device import Simulated
from adapt.cost.table import CostTable
from adapt.space import SearchSpace

table, kills = Path(sys.argv[1]), int(sys.argv[2])
space = SearchSpace.load("mobilenet_v2")
chance, known = random.Random(0), {{}}
for number in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        told = lambda done, total, note: os.write(write, b"%d\\n" % done)
        profiled(table, Simulated(noise=0.01), space=space, progress=told)
        os._exit(0)
    os.close(write)
    # Every other one is killed after its first report, however slow the machine is.
    first = os.read(read, 1 << 16) if number % 2 else b""
    time.sleep(chance.uniform(0.02, 0.6))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = (first + os.read(read, 1 << 20)).split()
    os.close(read)
    if not table.exists():
        assert not told
        continue
    with CostTable.open(table) as found:
        rows = found.rows()
    assert known.items() <= rows.items(), "a kill changed or lost a row"
    assert len(rows) >= (int(told[-1]) if told else 0), "a row that was reported is missing"
    known = rows
print(len(known))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks so that kills come within a second")
@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_random_kills_lose_nothing_that_was_reported(tmp_path, kills):
    path = tmp_path / "costs.sqlite"
    here = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", KILLED.format(path=here), str(path), str(kills)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 30
    space = SearchSpace.load("mobilenet_v2")
    detectors = DetectorSpace(space, DETECTOR, SIZE)
    work = select(detectors)
    with CostTable.open(path) as table:
        left = select(detectors, table)
    assert len(left.to_measure) == len(work.to_measure) - int(run.stdout)


def test_conditions_name_runtime_device_and_version():
    found = conditions(ORT, SIZE)
    assert str(found) == "ort-cpu fp32 batch 1"
    assert found.device
    assert found.cores >= 1
    assert found.runtime_version[0].isdigit()
