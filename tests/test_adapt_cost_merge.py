from dataclasses import replace

import pytest

from adapt.cost.merge import merge_tables
from adapt.cost.table import Conditions, CostTable, UnitCost
from adapt.cost.units import Lateral
from adapt.errors import AdaptError

CONDITIONS = Conditions("ort-cpu", "fp32", 1, 1, "a CPU", 64, 96, "1.0", 1)
COST = UnitCost(1.5, 1.6, 1.7, 1.9, samples=30, rounds=3)
UNITS = [Lateral(c, 8, 8, 12) for c in (8, 16, 24, 32)]


def write(path, costs, conditions=CONDITIONS):
    with CostTable.create(path, conditions) as table:
        table.add(costs)
    return path


def test_shards_merge_to_the_table_of_one_run(tmp_path):
    costs = {unit: replace(COST, min_ms=n + 1.0) for n, unit in enumerate(UNITS)}
    parts = [write(tmp_path / f"{n}", {u: costs[u] for u in UNITS[n::2]}) for n in range(2)]
    assert merge_tables(parts, tmp_path / "merged").rows == 4
    whole = write(tmp_path / "whole", costs)
    with CostTable.open(tmp_path / "merged") as merged, CostTable.open(whole) as expected:
        assert merged.hash == expected.hash


def test_of_a_unit_in_two_tables_the_faster_row_stays(tmp_path):
    slow = write(tmp_path / "slow", {UNITS[0]: replace(COST, min_ms=9.0)})
    fast = write(tmp_path / "fast", {UNITS[0]: COST})
    merge_tables([slow, fast], tmp_path / "merged")
    with CostTable.open(tmp_path / "merged") as merged:
        assert merged.find(UNITS[0]).min_ms == 1.5


def test_a_measured_row_is_better_than_a_faster_inferred_one(tmp_path):
    inferred = replace(COST, min_ms=1.0, samples=0, rounds=0)
    parts = write(tmp_path / "a", {UNITS[0]: inferred}), write(tmp_path / "b", {UNITS[0]: COST})
    merge_tables(parts, tmp_path / "merged")
    with CostTable.open(tmp_path / "merged") as merged:
        assert merged.find(UNITS[0]) == COST


def test_runs_and_the_fastest_anchor_are_kept(tmp_path):
    parts = [write(tmp_path / name, {}) for name in "ab"]
    for path, anchor in zip(parts, (2.0, 2.1), strict=True):
        with CostTable.open(path, writable=True) as table:
            table.store("anchor_ms", anchor)
            table.store("runs", [{"shard": path.name}])
    assert merge_tables(parts, tmp_path / "merged").slowest_machine == pytest.approx(0.05)
    with CostTable.open(tmp_path / "merged") as merged:
        assert merged.anchor_ms == 2.0
        assert [run["shard"] for run in merged.runs] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "another CPU"}, "device = another CPU"),
        ({"precision": "fp16"}, "precision = fp16"),
        ({"protocol": 2}, "protocol = 2"),
        ({"threads": 2}, "threads = 2"),
        ({"runtime_version": "2.0"}, "runtime_version = 2.0"),
        ({"driver": "570.86"}, "driver = 570.86"),
        ({"power_limit_w": 300}, "power_limit_w = 300"),
    ],
)
def test_tables_of_other_conditions_are_refused(tmp_path, change, message):
    one = write(tmp_path / "one", {})
    other = write(tmp_path / "other", {}, replace(CONDITIONS, **change))
    with pytest.raises(AdaptError, match=message):
        merge_tables([one, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_existing_table_is_not_overwritten(tmp_path):
    one = write(tmp_path / "one", {UNITS[0]: COST})
    with pytest.raises(AdaptError, match="already exists"):
        merge_tables([one], one)
