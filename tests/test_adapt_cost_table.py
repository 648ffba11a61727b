import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import astuple, replace

import pytest

from adapt.cost.table import Conditions, CostTable, UnitCost, predict_latency
from adapt.cost.units import Boundary, Lateral, boundaries, detector_units, unit_key
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.errors import AdaptError
from adapt.sources import mobilenet_v2

CONDITIONS = Conditions("ort-cpu", "fp32", 1, 1, "a CPU", 64, 96, "1.0", 1)
COST = UnitCost(1.5, 1.6, 1.7, 1.9, 30, 3, clock_mhz=1410.0, temperature_c=60.0, throttled="cap")
UNIT = Lateral(16, 8, 8, 12)
DETECTOR = DetectorConfig(num_classes=3, fpn_width=16, head_depth=1)
SIZE = InputSize(64, 96)


@pytest.fixture
def table(tmp_path):
    with CostTable.create(tmp_path / "costs.sqlite", CONDITIONS) as table:
        yield table


def test_a_row_survives_closing_and_opening(table):
    table.add({UNIT: COST})
    table.close()
    with CostTable.open(table.path) as again:
        assert again.find(UNIT) == COST
        assert again.rows() == {unit_key(UNIT): COST}
        assert again.conditions == CONDITIONS


def test_adding_a_unit_again_replaces_its_row(table):
    table.add({UNIT: COST})
    table.add({UNIT: replace(COST, min_ms=1.0)})
    assert len(table) == 1
    assert table.find(UNIT).min_ms == 1.0


def test_lookup_takes_half_of_what_boundaries_cost_out_of_a_unit(table):
    before, after = Boundary(16, 8, 12), Boundary(8, 8, 12)
    costs = {UNIT: 1.5, before: 0.5, after: 0.3}
    table.add({unit: replace(COST, min_ms=ms) for unit, ms in costs.items()})
    assert table.lookup(UNIT) == pytest.approx(1.5 - (0.5 + 0.3) / 2)


def test_a_unit_never_costs_less_than_nothing(table):
    table.add({UNIT: COST, **{end: replace(COST, min_ms=9.0) for end in boundaries(UNIT)}})
    assert table.lookup(UNIT) == 0


def test_lookup_needs_the_boundaries(table):
    table.add({UNIT: COST})
    with pytest.raises(AdaptError, match="no row for 'boundary channels=16 height=8 width=12'"):
        table.lookup(UNIT)


CERTIFICATE = {"mape": 0.02, "scale": 1.1, "offset_ms": 0.5}


def test_a_certificate_corrects_predictions(table):
    with pytest.raises(AdaptError, match=r"has no certificate; `adapt costs certify`"):
        table.corrected(10.0)
    table.store("certificate", CERTIFICATE)
    assert table.certificate == CERTIFICATE
    assert table.corrected(10.0) == pytest.approx(11.5)


def test_a_certificate_that_turns_costs_round_is_refused(table):
    table.store("certificate", {**CERTIFICATE, "scale": -0.25})
    with pytest.raises(AdaptError, match=r"by -0.25, .* again with `adapt costs certify RECIPE"):
        table.correction  # noqa: B018


def test_a_certificate_is_void_once_a_row_changes(table):
    table.add({UNIT: COST})
    table.store("certificate", CERTIFICATE)
    table.add({UNIT: replace(COST, min_ms=1.4)})
    assert table.certificate is None
    table.store("certificate", CERTIFICATE)
    assert table.certificate == CERTIFICATE


def test_notes_outlive_the_process(table):
    table.store("runs", [{"seed": 1}])
    table.store("anchor_ms", 0.25)
    table.close()
    with CostTable.open(table.path) as again:
        assert (again.runs, again.anchor_ms) == ([{"seed": 1}], 0.25)
        assert again.interpolation is None


def test_inferred_rows_are_missing_where_measured_ones_are_asked_for(table):
    table.add({UNIT: replace(COST, samples=0, rounds=0)})
    assert table.missing([UNIT]) == []
    assert table.missing([UNIT], inferred_too=True) == [UNIT]


def test_missing_keeps_the_order_of_what_was_not_measured(table):
    units = [Lateral(c, 8, 8, 12) for c in (32, 16, 24)]
    table.add({units[1]: COST})
    assert table.missing(units) == [units[0], units[2]]


def test_lookup_of_a_missing_unit_says_which_and_how_to_measure_it(table):
    table.add({end: COST for end in boundaries(UNIT)})
    with pytest.raises(AdaptError, match=rf"costs\.sqlite.*{unit_key(UNIT)}.*adapt profile"):
        table.lookup(UNIT)


def test_a_reader_cannot_write(table):
    with CostTable.open(table.path) as reader, pytest.raises(AdaptError, match="cannot be used"):
        reader.add({UNIT: COST})


def test_create_refuses_to_replace_a_table(table):
    with pytest.raises(AdaptError, match=r"already exists.*--out"):
        CostTable.create(table.path, CONDITIONS)


def test_hash_ignores_the_order_of_writing_but_not_the_values(tmp_path):
    units = [Lateral(c, 8, 8, 12) for c in range(1, 15)]
    hashes = []
    for name, order, cost in (("a", 1, COST), ("b", -1, COST), ("c", 1, replace(COST, samples=9))):
        with CostTable.create(tmp_path / name, CONDITIONS) as table:
            for unit in units[::order]:
                table.add({unit: cost})
            hashes.append(table.hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_hash_depends_on_the_conditions(tmp_path, table):
    with CostTable.create(tmp_path / "other", replace(CONDITIONS, threads=2)) as other:
        assert other.hash != table.hash


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"runtime": "tensorrt", "precision": "fp16"},
            r"measured on ort-cpu fp32 batch 1; this search asks for tensorrt fp16 batch 1: "
            r"measure it there with `adapt profile RECIPE`",
        ),
        ({"batch": 8}, r"batch 1; .* batch 8"),
        ({"size": InputSize(96, 96)}, r"at 64x96; .* at 96x96"),
        ({"device": "another CPU"}, r"\(a CPU\); .* \(another CPU\)"),
    ],
)
def test_check_names_both_conditions_and_the_command(table, asked, message):
    fitting = {"runtime": "ort-cpu", "precision": "fp32", "batch": 1, "size": SIZE}
    table.check(**fitting)
    with pytest.raises(AdaptError, match=message):
        table.check(**{**fitting, **asked})


def test_check_resumable_names_the_condition_that_differs(table):
    table.check_resumable(CONDITIONS)
    with pytest.raises(AdaptError, match=r"threads = 1, this run has threads = 2; .*--out"):
        table.check_resumable(replace(CONDITIONS, threads=2))


def write_text(path):
    path.write_text("not a database, but long enough to have a header " * 40)


def write_foreign_database(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()


def write_table(path, statement=""):
    with CostTable.create(path, CONDITIONS) as table:
        table.add({Lateral(c, 8, 8, 12): COST for c in range(1, 500)})
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def write_truncated(path):
    write_table(path)
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def write_other_version(path):
    write_table(path, "UPDATE meta SET value = '2' WHERE key = 'version'")


def write_without_conditions(path):
    write_table(path, "UPDATE meta SET value = '{}' WHERE key = 'conditions'")


def write_damaged_description(path):
    write_table(path, "UPDATE meta SET value = '{' WHERE key = 'conditions'")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "does not exist; `adapt profile` measures one"),
        (lambda path: path.touch(), "not an adapt cost-table file"),
        (write_text, "not a readable cost table .*not a database"),
        (write_foreign_database, "not an adapt cost-table file"),
        (write_truncated, "not a readable cost table .*malformed"),
        (write_other_version, "format version 2, this adapt reads version 1"),
        (write_without_conditions, "is not valid"),
        (write_damaged_description, "description is not JSON"),
    ],
)
def test_open_refuses_in_one_sentence(tmp_path, write, message):
    path = tmp_path / "costs.sqlite"
    write(path)
    with pytest.raises(AdaptError, match=rf"costs\.sqlite.*{message}") as error:
        CostTable.open(path)
    assert "\n" not in str(error.value)


def test_a_killed_writer_leaves_what_it_added(tmp_path):
    path = tmp_path / "costs.sqlite"
    program = (
        "import os, signal, sys; from pathlib import Path; "
        "from adapt.cost.table import *; from adapt.cost.units import *; "
        f"table = CostTable.create(Path(sys.argv[1]), Conditions(*{astuple(CONDITIONS)})); "
        f"table.add({{Lateral(*{astuple(UNIT)}): UnitCost(*{astuple(COST)})}}); "
        "table._connection.execute('DELETE FROM cost'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with CostTable.open(path) as table:
        assert table.find(UNIT) == COST


def test_prediction_is_the_sum_over_the_units(table):
    units = list(detector_units(mobilenet_v2(), DETECTOR, SIZE))
    ends = {end: replace(COST, min_ms=0.0) for unit in units for end in boundaries(unit)}
    costs = {unit: replace(COST, min_ms=2.0**-k) for k, unit in enumerate(dict.fromkeys(units))}
    table.add({**costs, **ends})
    expected = sum(table.lookup(unit) for unit in units)
    assert predict_latency(table, mobilenet_v2(), DETECTOR, SIZE) == expected
    assert len(units) > len(costs)  # repeated operations count each time
