import sqlite3
from dataclasses import replace

import pytest

import bench.profiler
from adapt.architecture import Architecture, Block
from adapt.cost import space_units
from adapt.cost_table import CostTable, UnitCost, predict_latency
from adapt.detector import DetectorConfig
from adapt.errors import AdaptError
from adapt.images import InputSize
from adapt.space import BlockSpace, Operation, SearchSpace
from adapt.units import Rest, detector_units, unit_key
from bench.profiler import estimate_seconds, ort_cpu_conditions, plan, profile
from bench.timing import Protocol

SIZE = InputSize(64, 64)
DETECTOR = DetectorConfig(num_classes=2, fpn_width=8, head_depth=0, candidates=20)
BLOCKS = tuple(BlockSpace(2, stride, (3,), (3,), (8, 16)) for stride in (2, 2, 2, 2))
SPACE = SearchSpace("tiny", "mobilenet_v2", 8, 8, (2, 3, 4), BLOCKS)
QUICK = Protocol(rounds=3, round_ms=0.2, retries=0)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The tiny space, measured for real."""
    path = tmp_path_factory.mktemp("profile") / "costs.sqlite"
    return path, profile(SPACE, DETECTOR, SIZE, path, protocol=QUICK)


def test_profile_measures_every_unit_once(profiled):
    path, summary = profiled
    units = space_units(SPACE, DETECTOR, SIZE)
    assert summary.units == summary.measured == len(units)
    with CostTable.open(path) as table:
        assert table.missing(units) == []
        assert len(table) == len(units)


def test_every_row_has_ordered_statistics_and_enough_samples(profiled):
    with CostTable.open(profiled[0]) as table:
        costs = [table.find(unit) for unit in space_units(SPACE, DETECTOR, SIZE)]
    for cost in costs:
        assert 0 < cost.min_ms <= cost.p10_ms <= cost.p50_ms <= cost.p90_ms
        assert cost.samples >= 3
        assert cost.rounds == 3


def test_a_second_run_measures_nothing(profiled):
    path, _ = profiled
    with CostTable.open(path) as table:
        before = table.hash
    assert profile(SPACE, DETECTOR, SIZE, path, protocol=QUICK).measured == 0
    with CostTable.open(path) as table:
        assert table.hash == before


def test_prediction_is_the_sum_of_the_rows(profiled):
    blocks = tuple(Block(b.stride, 16, (Operation(3, 3),) * 2) for b in BLOCKS)
    network = Architecture("mobilenet_v2", 8, 8, (2, 3, 4), blocks)
    with sqlite3.connect(profiled[0]) as connection:
        rows = dict(connection.execute("SELECT unit, min_ms FROM cost"))
    connection.close()
    expected = sum(rows[unit_key(unit)] for unit in detector_units(network, DETECTOR, SIZE))
    with CostTable.open(profiled[0]) as table:
        assert predict_latency(table, network, DETECTOR, SIZE) == pytest.approx(expected)


@pytest.fixture
def without_rest(monkeypatch):
    """A profiler of few units at a time, without the slow export of the rest of the detector."""

    def units(*arguments):
        return [unit for unit in space_units(*arguments) if not isinstance(unit, Rest)]

    monkeypatch.setattr(bench.profiler, "space_units", units)
    monkeypatch.setattr(bench.profiler, "CHUNK", 4)
    return len(units(SPACE, DETECTOR, SIZE))


def test_an_interrupted_run_keeps_its_rows_and_continues(tmp_path, without_rest):
    path = tmp_path / "costs.sqlite"

    def interrupt(done, total, note):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(SPACE, DETECTOR, SIZE, path, protocol=QUICK, progress=interrupt)
    with CostTable.open(path) as table:
        kept = len(table)
    steps = []
    summary = profile(
        SPACE, DETECTOR, SIZE, path, protocol=QUICK, progress=lambda *step: steps.append(step)
    )
    assert 6 <= kept < without_rest
    assert summary.measured == without_rest - kept
    assert steps[-1][0] == steps[-1][1] >= without_rest  # slow units are measured again on top


def cost_of(milliseconds, drifted):
    return UnitCost(*[milliseconds] * 4, samples=6, rounds=3, drifted=drifted)


def test_units_that_met_a_slow_machine_are_measured_again_and_the_faster_row_stays(
    tmp_path, without_rest, monkeypatch
):
    slow, *_ = space_units(SPACE, DETECTOR, SIZE)
    slow_costs = iter([cost_of(2.0, drifted=3), cost_of(1.0, drifted=2)])
    measured = []

    def chunk(self, units):
        measured.extend(units)
        return {unit: next(slow_costs) if unit == slow else cost_of(3.0, 1) for unit in units}

    monkeypatch.setattr(bench.profiler._UnitTimer, "chunk", chunk)
    summary = profile(SPACE, DETECTOR, SIZE, tmp_path / "costs.sqlite", protocol=QUICK)
    assert measured[without_rest:] == [slow]
    assert summary.drifted == 1
    with CostTable.open(summary.table) as table:
        assert table.lookup(slow) == 1.0


@pytest.mark.parametrize(
    ("size", "threads", "message"),
    [
        (SIZE, 2, r"threads = 1, this run has threads = 2; choose another file with --out"),
        (InputSize(96, 64), 1, r"height = 64, this run has height = 96"),
        (SIZE, 0, r"threads must be at least 1, got 0"),
        (InputSize(800, 1333, "shortest-edge"), 1, r"use the letterbox 800x1344"),
    ],
)
def test_profile_refuses(profiled, size, threads, message):
    with pytest.raises(AdaptError, match=message):
        profile(SPACE, DETECTOR, size, profiled[0], threads=threads, protocol=QUICK)


def test_profile_refuses_a_file_that_is_no_table(tmp_path):
    path = tmp_path / "costs.sqlite"
    path.write_text("notes")
    with pytest.raises(AdaptError, match=r"costs\.sqlite is not a readable cost table"):
        profile(SPACE, DETECTOR, SIZE, path, protocol=QUICK)
    assert path.read_text() == "notes"


def test_plan_counts_what_a_table_lacks(tmp_path, profiled):
    assert plan(SPACE, DETECTOR, SIZE).measured == 0
    with CostTable.open(profiled[0]) as table:
        full = plan(SPACE, DETECTOR, SIZE, table)
        larger = plan(SPACE, DETECTOR, InputSize(96, 64), table)
    assert (full.measured, full.to_measure) == (len(full.units), ())
    assert larger.to_measure == larger.units


def test_estimate_is_positive_and_zero_for_a_finished_plan(without_rest, profiled):
    assert estimate_seconds(plan(SPACE, DETECTOR, SIZE), sample=2) > 0
    with CostTable.open(profiled[0]) as table:
        assert estimate_seconds(plan(SPACE, DETECTOR, SIZE, table)) == 0


def test_conditions_name_runtime_device_and_version():
    conditions = ort_cpu_conditions(SIZE, threads=1)
    assert str(conditions) == "ort-cpu fp32 batch 1"
    assert conditions.device
    assert conditions.runtime_version[0].isdigit()


WIDE = SearchSpace(
    "wide", "mobilenet_v2", 8, 8, (2, 3, 4), tuple(replace(b, widths=(8, 12, 16)) for b in BLOCKS)
)


def test_widths_off_the_grid_are_interpolated_and_some_of_them_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.profiler, "HELD_OUT", 5)
    path = tmp_path / "costs.sqlite"
    summary = profile(WIDE, DETECTOR, SIZE, path, protocol=QUICK, grid=8)
    units, on_grid = (space_units(space, DETECTOR, SIZE) for space in (WIDE, WIDE.on_grid(8)))
    assert summary.measured == len(on_grid)
    with CostTable.open(path) as table:
        marked = [unit for unit in units if table.find(unit).interpolated]
        assert len(marked) == summary.interpolated == len(units) - len(on_grid) - 5
        assert table.interpolation["held_out"] == 5
        assert table.missing(units) == []
        assert table.missing(units, interpolated_too=True) == marked


def test_a_finer_grid_measures_what_was_interpolated(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.profiler, "HELD_OUT", 5)
    path = tmp_path / "costs.sqlite"
    coarse = profile(WIDE, DETECTOR, SIZE, path, protocol=QUICK, grid=8)
    fine = profile(WIDE, DETECTOR, SIZE, path, protocol=QUICK)
    assert (fine.measured, fine.interpolated) == (coarse.interpolated, 0)
