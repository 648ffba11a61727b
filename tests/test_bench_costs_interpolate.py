from dataclasses import replace
from itertools import product

import pytest

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.table import UnitCost
from adapt.cost.units import Lateral, MBConvUnit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.errors import AdaptError
from adapt.space import SearchSpace
from bench.costs.interpolate import interpolate, measured_units

INPUTS, OUTPUTS, KERNELS = range(16, 41, 4), range(24, 61, 2), (3, 5, 7)
FIRST = MBConvUnit(16, 32, 3, 6, 2, False, 64, 64)
UNITS = [
    replace(FIRST, c_in=c_in, c_out=c_out, kernel=kernel)
    for c_in, c_out, kernel in product(INPUTS, OUTPUTS, KERNELS)
]
RESIDUAL = [MBConvUnit(c, c, 3, 6, 1, True, 32, 32) for c in OUTPUTS]


def jagged(unit):
    """A sum of expansion, depthwise convolution and projection on a runtime that likes blocks."""
    plain = 2.5 if unit.c_in % 8 else 1.0  # another path where the input is not aligned
    blocks = -(-unit.c_out // 16)
    return unit.c_in * plain * (1 + 0.1 * unit.kernel**2) + unit.c_in * plain * 0.2 * blocks


def cost(value):
    return UnitCost(value, value + 1, value + 2, value + 3, samples=9, rounds=3)


def measure(units, of=jagged):
    return {unit: cost(of(unit)) for unit in units}


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_a_sum_of_its_parts_is_recovered_however_jagged(grid):
    units = [unit for unit in UNITS if grid == 2 or unit.c_out % 8 == 0]
    found = interpolate(measure(measured_units(units, grid)), units, grid)
    assert len(found) > 0.6 * len(units)
    for unit, inferred in found.items():
        assert inferred.min_ms == pytest.approx(jagged(unit))
        assert inferred.p90_ms == pytest.approx(jagged(unit) + 3)


def test_inferred_rows_have_no_samples():
    found = interpolate(measure(measured_units(UNITS, 2)), UNITS, 2)
    assert {(row.samples, row.rounds, row.interpolated) for row in found.values()} == {(0, 0, True)}


def test_measured_and_inferred_are_all_units():
    chosen = measured_units(UNITS, 2)
    assert {*chosen, *interpolate(measure(chosen), UNITS, 2)} == set(UNITS)
    assert chosen == [unit for unit in UNITS if unit in set(chosen)]


def test_without_a_grid_everything_is_measured():
    assert measured_units(UNITS, 1) == UNITS
    assert interpolate(measure(UNITS), UNITS, 1) == {}


def test_what_has_one_width_is_measured():
    others = [*RESIDUAL, Lateral(16, 64, 8, 8)]
    assert set(measured_units([*UNITS, *others], 8)) >= set(others)


def test_widths_without_a_full_grid_are_measured():
    units = [unit for unit in UNITS if unit.c_in != 40 or unit.c_out != 60]
    chosen = measured_units(units, 2)
    assert {unit for unit in units if unit.c_in == 40} <= set(chosen)
    assert {*chosen, *interpolate(measure(chosen), units, 2)} == set(units)


def test_statistics_stay_ordered_where_noise_would_cross_them():
    def crossing(unit):
        value = jagged(unit)
        return UnitCost(value, value, value, value + unit.c_out % 3, samples=9, rounds=3)

    chosen = {unit: crossing(unit) for unit in measured_units(UNITS, 2)}
    for row in interpolate(chosen, UNITS, 2).values():
        assert row.min_ms <= row.p10_ms <= row.p50_ms <= row.p90_ms


def test_a_missing_measurement_is_named():
    chosen = measure(measured_units(UNITS, 2))
    chosen.popitem()
    with pytest.raises(AdaptError, match=r"cannot be inferred: '.*' is missing; .*--grid 1"):
        interpolate(chosen, UNITS, 2)


@pytest.fixture(scope="module")
def paper_units():
    space = SearchSpace.load("mobilenet_v2")
    return DetectorSpace(space, DetectorConfig(num_classes=80), InputSize(320, 320)).units()


@pytest.mark.parametrize("grid", [2, 8])
def test_of_the_paper_space_less_than_15_percent_are_measured(grid, paper_units):
    units = paper_units
    chosen = measured_units(units, grid)
    assert len(units) > 13_284
    assert len(chosen) <= 0.15 * len(units)
    kinds = {(unit.kernel, unit.expansion) for unit in chosen if isinstance(unit, MBConvUnit)}
    assert kinds >= set(product(KERNELS, (3, 6)))
