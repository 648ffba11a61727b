"""What does a unit cost whose widths were not measured, but their neighbours were?

Latency is interpolated linearly over input and output channels between measured units of the same
kind, resolution, kernel and expansion.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, replace

import numpy as np

from adapt.cost_table import UnitCost
from adapt.errors import AdaptError
from adapt.units import P6, Lateral, MBConvUnit, Unit, unit_key

Point = tuple[int, ...]  # the widths of a unit
STATISTICS = ("min_ms", "p10_ms", "p50_ms", "p90_ms")


def interpolate(measured: Mapping[Unit, UnitCost], wanted: Iterable[Unit]) -> dict[Unit, UnitCost]:
    """Return the costs of units between measured ones.

    Args:
        measured: Costs of units whose widths form a grid, within each kind of unit.
        wanted: Units inside that grid.

    Returns:
        Their costs, with 0 samples in 0 rounds, which marks them as interpolated.

    Raises:
        AdaptError: If a unit lies outside of what was measured.
    """
    groups: dict[Hashable, dict[Point, UnitCost]] = defaultdict(dict)
    for unit, cost in measured.items():
        groups[_kind(unit)][_widths(unit)] = cost
    return {unit: _between(unit, groups.get(_kind(unit), {})) for unit in wanted}


def _widths(unit: Unit) -> Point:
    match unit:
        case MBConvUnit(residual=True):
            return (unit.c_in,)  # as many channels out as in
        case MBConvUnit():
            return unit.c_in, unit.c_out
        case Lateral() | P6():
            return (unit.c_in,)
        case _:
            return ()


def _kind(unit: Unit) -> Hashable:
    """Return all that identifies a unit but its widths."""
    match unit:
        case MBConvUnit():
            return unit_key(replace(unit, c_in=0, c_out=0))
        case Lateral() | P6():
            return unit_key(replace(unit, c_in=0))
        case _:
            return unit_key(unit)


def _between(unit: Unit, grid: Mapping[Point, UnitCost]) -> UnitCost:
    point = _widths(unit)
    axes = [sorted(set(values)) for values in zip(*grid, strict=True)]
    corners: list[tuple[Point, float]] = [((), 1.0)]
    for value, axis in zip(point, axes, strict=False):
        corners = [
            ((*corner, width), weight * share)
            for corner, weight in corners
            for width, share in _neighbours(value, axis)
        ]
    if len(axes) != len(point) or any(corner not in grid for corner, _ in corners):
        raise AdaptError(
            f"'{unit_key(unit)}' lies outside of the measured units and cannot be interpolated; "
            "measure it with a finer --grid"
        )
    weights = np.array([weight for _, weight in corners])
    rows = [asdict(grid[corner]) for corner, _ in corners]
    low, p10, p50, p90 = (float(weights @ [row[name] for row in rows]) for name in STATISTICS)
    return UnitCost(low, p10, p50, p90, samples=0, rounds=0)


def _neighbours(value: int, axis: list[int]) -> list[tuple[int, float]]:
    """Return the measured widths around a value, and the weight of each."""
    above = next((width for width in axis if width >= value), axis[-1])
    below = next((width for width in reversed(axis) if width <= value), axis[0])
    if above == below:
        return [(above, 1.0)] if above == value else [(-1, 1.0)]  # -1 is never measured
    share = (value - below) / (above - below)
    return [(below, 1 - share), (above, share)]
