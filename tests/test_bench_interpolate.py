from dataclasses import replace

import pytest

from adapt.cost_table import UnitCost
from adapt.errors import AdaptError
from adapt.units import P6, Lateral, MBConvUnit, Stem
from bench.interpolate import interpolate

FIRST = MBConvUnit(16, 32, 3, 6, 2, False, 64, 64)
INNER = MBConvUnit(16, 16, 3, 6, 1, True, 64, 64)


def cost(value):
    return UnitCost(value, value + 1, value + 2, value + 3, samples=9, rounds=3)


def test_first_operations_are_interpolated_over_both_widths():
    def plane(c_in, c_out):
        return 1.0 + 0.5 * c_in + 0.25 * c_out

    def at(c_in, c_out):
        return replace(FIRST, c_in=c_in, c_out=c_out)

    grid = {at(i, o): cost(plane(i, o)) for i in (8, 16, 32) for o in (16, 48)}
    found = interpolate(grid, [at(20, 28)])[at(20, 28)]
    assert found.min_ms == pytest.approx(plane(20, 28))
    assert found.p90_ms == pytest.approx(plane(20, 28) + 3)


def test_interpolated_rows_are_marked_by_having_no_samples():
    grid = {replace(INNER, c_in=c, c_out=c): cost(float(c)) for c in (16, 32)}
    wanted = replace(INNER, c_in=20, c_out=20)
    found = interpolate(grid, [wanted])[wanted]
    assert (found.min_ms, found.samples, found.rounds) == (pytest.approx(20.0), 0, 0)


@pytest.mark.parametrize("unit", [Lateral(16, 64, 8, 8), P6(16, 64, 8, 8)])
def test_pyramid_units_are_interpolated_over_their_input(unit):
    grid = {replace(unit, c_in=c): cost(c / 8) for c in (16, 32)}
    wanted = replace(unit, c_in=28)
    assert interpolate(grid, [wanted])[wanted].min_ms == pytest.approx(3.5)


@pytest.mark.parametrize(
    "wanted",
    [
        replace(INNER, c_in=8, c_out=8),
        replace(INNER, c_in=40, c_out=40),
        replace(INNER, kernel=5),
        replace(INNER, height=32),
        FIRST,
        Stem(32, 64, 64),
    ],
)
def test_units_outside_of_the_measured_ones_are_refused(wanted):
    grid = {replace(INNER, c_in=c, c_out=c): cost(float(c)) for c in (16, 32)}
    with pytest.raises(AdaptError, match="cannot be interpolated"):
        interpolate(grid, [wanted])
