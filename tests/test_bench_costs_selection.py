from dataclasses import replace

import pytest
from profile_parts import DETECTOR, DETECTORS, SIZE, WIDE_DETECTORS, profiled
from simulated_device import Simulated

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.table import CostTable
from adapt.cost.units import Boundary, boundaries, detector_units
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from adapt.sources import mobilenet_v2, with_source_widths
from adapt.space import SearchSpace
from bench.costs.interpolate import measured_units
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


SOURCE = mobilenet_v2()
GRID_16 = DetectorSpace(
    with_source_widths(SearchSpace.load("mobilenet_v2").on_grid(16)), DETECTOR, SIZE
)


@pytest.fixture(scope="module")
def without_the_source():
    """A space of six blocks, in which none may be as wide as the source's."""
    space = GRID_16.space
    blocks = [
        replace(block, widths=tuple(width for width in block.widths if width > own.width))
        for block, own in zip(space.blocks, SOURCE.blocks, strict=True)
    ]
    return replace(GRID_16, space=replace(space, blocks=tuple(blocks)))


@pytest.mark.parametrize("grid", [1, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_no_unit_of_the_source_is_inferred_and_no_shard_leaves_one_out(grid, count):
    parts = [select(GRID_16, part=Part(Shard(n + 1, count), grid)) for n in range(count)]
    measured = {unit for part in parts for unit in part.to_measure}
    of_source = set(detector_units(SOURCE, DETECTOR, SIZE))
    assert measured >= of_source | {end for unit in of_source for end in boundaries(unit)}
    assert of_source <= set(parts[0].space)  # a search may leave everything as it is


@pytest.mark.parametrize("grid", [1, 2])
def test_source_outside_of_its_space_is_measured_too_and_spoils_no_inference(
    grid, without_the_source
):
    work = select(without_the_source, part=Part(grid=grid))
    of_source = set(detector_units(SOURCE, DETECTOR, SIZE))
    assert of_source <= set(work.on_design)
    assert of_source - set(work.space)
    assert work.distinct == len({*work.space, *of_source})
    others = set(work.on_design) - of_source
    assert others <= set(measured_units(list(work.space), grid))


@pytest.mark.parametrize("numerator", [3, 4, 5])
def test_source_scaled_to_candidates_is_of_units_that_a_table_has(numerator):
    blocks = tuple(
        replace(own, width=min(block.widths, key=lambda w: abs(w - own.width * numerator / 4)))
        for own, block in zip(SOURCE.blocks, GRID_16.space.blocks, strict=True)
    )
    scaled = replace(SOURCE, blocks=blocks)
    work = select(GRID_16, part=Part(grid=2))
    assert set(detector_units(scaled, DETECTOR, SIZE)) <= {*work.on_design, *work.to_infer}
