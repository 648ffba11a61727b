"""How do the shards of a measurement become one cost table?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from adapt.artifacts import atomic_path
from adapt.cost.table import CostTable, UnitCost
from adapt.errors import AdaptError


@dataclass(frozen=True)
class MergeSummary:
    """What was merged.

    Attributes:
        rows: Rows of the new table.
        slowest_machine: How much slower the slowest machine measured the anchor operation than the
            fastest did; 0.1 is 10 % slower.
    """

    rows: int
    slowest_machine: float


def merge_tables(paths: Sequence[Path], out: Path) -> MergeSummary:
    """Write the rows of several tables into a new one.

    Of a unit in several tables, a measured row wins over an interpolated one, then the faster.

    Args:
        paths: Tables measured under the same conditions.
        out: Table to write; it appears when it is complete.

    Returns:
        How many rows, and how far apart the machines were.

    Raises:
        AdaptError: If there is no table, ``out`` exists, a table cannot be read, or two were
            measured under different conditions.
    """
    if not paths:
        raise AdaptError("there is nothing to merge; pass at least one cost table")
    if out.exists():
        raise AdaptError(f"cost table {out} already exists; choose another path with --out")
    with CostTable.open(paths[0]) as first:
        conditions = first.conditions
    rows: dict[str, UnitCost] = {}
    runs: list[dict[str, Any]] = []
    anchors = []
    for path in paths:
        with CostTable.open(path) as table:
            _check_same(first, table)
            for key, cost in table.rows().items():
                rows[key] = min(rows.get(key, cost), cost, key=_preference)
            runs += table.runs
            anchors.append(table.anchor_ms)
    with atomic_path(out) as temporary:
        temporary.unlink()  # CostTable.create refuses to replace a file
        with CostTable.create(temporary, conditions) as merged:
            merged.add_rows(rows)
            merged.store("runs", runs)
            if known := [anchor for anchor in anchors if isfinite(anchor)]:
                merged.store("anchor_ms", min(known))
    return MergeSummary(len(rows), max(known) / min(known) - 1 if known else 0.0)


def _preference(cost: UnitCost) -> tuple[bool, float]:
    return cost.interpolated, cost.min_ms


def _check_same(first: CostTable, other: CostTable) -> None:
    other_conditions = asdict(other.conditions)
    for name, value in asdict(first.conditions).items():
        if other_conditions[name] != value:
            raise AdaptError(
                f"{other.path} was measured with {name} = {other_conditions[name]}, {first.path} "
                f"with {name} = {value}; merge only tables of one device and one protocol"
            )
