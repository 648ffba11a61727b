from dataclasses import replace

import pytest
from profile_parts import DETECTORS, WIDE_DETECTORS, profiled
from simulated_device import Simulated

from adapt.cost.table import CostTable
from adapt.cost.units import Boundary, boundaries
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from bench.costs.selection import Part, Shard, select


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "costs.sqlite"
    profiled(path, Simulated())
    with CostTable.open(path) as table:
        yield table


def test_without_a_table_everything_is_measured():
    work = select(DETECTORS)
    units = DETECTORS.units()
    ends = {end for unit in units for end in boundaries(unit)}
    assert work.space == work.on_design == tuple(units)
    assert set(work.to_measure) == {*units, *ends}
    assert len(work.to_measure) == len(set(work.to_measure))
    assert (work.to_infer, work.done) == ((), 0)


def test_what_a_table_holds_is_done(table):
    full = select(DETECTORS, table)
    larger = select(replace(DETECTORS, size=InputSize(96, 64)), table)
    assert (full.to_measure, full.done) == ((), len(table))
    assert (larger.to_measure, larger.done) == (larger.of_shard, 0)


def test_a_grid_measures_a_part_and_infers_the_rest():
    work = select(WIDE_DETECTORS, part=Part(grid=8))
    assert {*work.on_design, *work.to_infer} == set(work.space)
    assert len(work.on_design) + len(work.to_infer) == len(work.space)
    assert len(work.on_design) < 0.5 * len(work.space)


def test_shards_partition_units_and_boundaries():
    whole = select(DETECTORS)
    parts = [select(DETECTORS, part=Part(Shard(n, 3))).to_measure for n in (1, 2, 3)]
    assert sorted(map(repr, whole.to_measure)) == sorted(repr(u) for part in parts for u in part)
    for part in parts:  # they take about equally long
        assert sum(isinstance(u, Boundary) for u in part) in (3, 4, 5)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_malformed_shard_is_refused(text):
    with pytest.raises(AdaptError, match="--shard must be like 2/4"):
        Shard.parse(text)


def test_slurm_task_measures_its_part(monkeypatch):
    assert Shard.from_environment() == Shard(1, 1)
    for name, value in (("ID", 7), ("MIN", 5), ("COUNT", 4)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert Shard.from_environment() == Shard(3, 4)
