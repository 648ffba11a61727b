"""Does a cost table tell operations from what starting them takes, or does it call them free?"""

from collections.abc import Iterable

from adapt.cost.table import CostTable
from adapt.cost.units import Unit, boundaries, unit_key
from adapt.errors import AdaptError

TOLERATED = 0.01  # share of units that may be free; one always may, by noise


def free_units(table: CostTable, units: Iterable[Unit]) -> tuple[list[Unit], int]:
    """Return the units that :meth:`CostTable.lookup` calls free, and of how many.

    They took no longer than the light convolutions around them. Units without a row, or with a
    boundary without one, are left out: other shards may have these.
    """
    rows = table.rows()
    free, known = [], 0
    for unit in units:
        keys = [unit_key(unit), *map(unit_key, boundaries(unit))]
        if all(key in rows for key in keys):
            whole_ms, *ends_ms = (rows[key].min_ms for key in keys)
            known += 1
            if whole_ms <= sum(ends_ms) / 2:
                free.append(unit)
    return free, known


def check_resolution(table: CostTable, units: Iterable[Unit]) -> None:
    """Check that a table tells the latencies of operations.

    Raises:
        AdaptError: If it calls more than :data:`TOLERATED` of them free. A search would take these
            as often as it can.
    """
    free, known = free_units(table, units)
    if len(free) > max(1, TOLERATED * known):
        raise AdaptError(
            f"cost table {table.path} has no latency for {len(free)} of {known} operations, such "
            f"as '{unit_key(free[0])}': they took no longer than the light convolutions around "
            "them, because starting an operation takes this machine longer than computing it "
            "(launch-bound); measure again at a larger batch or input, on a machine with a faster "
            "processor or nothing else to do, or search with --cost madds"
        )
