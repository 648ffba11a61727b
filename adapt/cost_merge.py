"""How do the shards of a measurement become one cost table?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adapt.artifacts import atomic_path
from adapt.cost_table import CostTable, UnitCost
from adapt.errors import AdaptError


def merge_tables(paths: Sequence[Path], out: Path) -> int:
    """Write the rows of several tables into a new one; of a unit in two, the faster row.

    Args:
        paths: Tables measured under the same conditions.
        out: Table to write; it appears when it is complete.

    Returns:
        Number of rows.

    Raises:
        AdaptError: If there is no table, ``out`` exists, a table cannot be read, or two were
            measured under different conditions.
    """
    if not paths:
        raise AdaptError("there is nothing to merge; pass at least one cost table")
    if out.exists():
        raise AdaptError(f"cost table {out} already exists; choose another path with --out")
    with CostTable.open(paths[0]) as first:
        conditions, rows = first.conditions, first.rows()
    for path in paths[1:]:
        with CostTable.open(path) as table:
            _check_same(first, table)
            for key, cost in table.rows().items():
                rows[key] = min(rows.get(key, cost), cost, key=_minimum)
    with atomic_path(out) as temporary:
        temporary.unlink()
        with CostTable.create(temporary, conditions) as merged:
            merged.add_rows(rows)
    return len(rows)


def _minimum(cost: UnitCost) -> float:
    return cost.min_ms


def _check_same(first: CostTable, other: CostTable) -> None:
    measured, found = asdict(first.conditions), asdict(other.conditions)
    for name, value in measured.items():
        if found[name] != value:
            raise AdaptError(
                f"{other.path} was measured with {name} = {found[name]}, {first.path} with {name} "
                f"= {value}; merge only tables of one device and one protocol"
            )
