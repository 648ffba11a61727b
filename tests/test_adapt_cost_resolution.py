"""A table in which operations take as long as launching them is no table."""

from pathlib import Path

import pytest
import simulated_device
from profile_parts import DETECTORS, profiled
from simulated_device import Simulated

from adapt.cost.resolution import check_resolution, free_units
from adapt.cost.table import CostTable, UnitCost
from adapt.cost.units import boundaries
from adapt.errors import AdaptError
from bench.costs.certify import WHOLE_PROTOCOL, certify
from bench.latency.workers import Measurement

UNITS = DETECTORS.units()
LAUNCH_BOUND = Simulated(launch_bound_ms=1.0)


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    simulated_device.reset()
    return profiled(tmp_path / "costs", Simulated()).table


@pytest.fixture
def launch_bound(tmp_path: Path) -> Path:
    simulated_device.reset()
    return profiled(tmp_path / "costs", LAUNCH_BOUND).table


def test_true_costs_pass(measured: Path) -> None:
    with CostTable.open(measured) as table:
        assert free_units(table, UNITS) == ([], len(UNITS))
        check_resolution(table, UNITS)


def test_units_whose_boundaries_another_shard_has_are_left_out(measured: Path) -> None:
    with CostTable.open(measured, writable=True) as table:
        table._connection.execute("DELETE FROM cost WHERE unit LIKE 'boundary%'")
        _, known = free_units(table, UNITS)
    assert known == sum(not boundaries(unit) for unit in UNITS)


@pytest.mark.parametrize(("free", "passes"), [(1, True), (2, False)])
def test_one_operation_may_be_free_by_noise(measured: Path, free: int, passes: bool) -> None:
    with CostTable.open(measured, writable=True) as table:
        for unit in [u for u in UNITS if boundaries(u)][:free]:
            table.add({unit: UnitCost(1e-6, 1e-6, 1e-6, 1e-6, samples=9, rounds=3)})
        if passes:
            check_resolution(table, UNITS)
        else:
            with pytest.raises(AdaptError, match=rf"no latency for 2 of {len(UNITS)} operations"):
                check_resolution(table, UNITS)


def test_neither_table_nor_certificate_of_a_launch_bound_machine_is_accepted(
    launch_bound: Path,
) -> None:
    with CostTable.open(launch_bound, writable=True) as table:
        with pytest.raises(AdaptError, match=r"\(launch-bound\); measure again at a larger batch"):
            check_resolution(table, UNITS)
        with pytest.raises(AdaptError, match="launch-bound"):
            certify(table, DETECTORS, Measurement(LAUNCH_BOUND, WHOLE_PROTOCOL), 4)
        assert table.certificate is None
