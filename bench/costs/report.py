"""How is a cost table shown? (`adapt costs show`: summary, heat map; `adapt costs export`: CSV)"""

import csv
import io
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.artifacts import atomic_path, write_text
from adapt.cost.table import CostTable, UnitCost
from adapt.cost.units import Boundary, OperationUnit, parse_key
from adapt.errors import AdaptError
from bench.latency.provenance import POWER_CAP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = dict[tuple[int, int], float]  # (c_in, c_out) -> milliseconds


def table_rows(table: CostTable) -> list[dict[str, Any]]:
    """Return one dictionary per row: kind of unit, its fields, its cost, and what was measured.

    ``cost_ms`` is what the unit adds to a detector; the other columns include the two light
    convolutions that it was measured between.
    """
    return [
        {
            **_fields(key),
            "cost_ms": _cost_ms(table, key, cost),
            "inferred": cost.interpolated,
            **asdict(cost),
        }
        for key, cost in sorted(table.rows().items())
    ]


def _fields(key: str) -> dict[str, str]:
    kind, *fields = key.split()
    return {"kind": kind, **dict(field.split("=", 1) for field in fields)}


def _cost_ms(table: CostTable, key: str, cost: UnitCost) -> float | None:
    """Return what a row adds to a detector; None if another shard has one of its boundaries."""
    unit = parse_key(key)
    if isinstance(unit, Boundary):
        return cost.min_ms
    try:
        return table.lookup(unit)
    except AdaptError:
        return None


def summarise(table: CostTable) -> dict[str, Any]:
    """Return a table's conditions and certificate, and number and range of rows by kind of unit."""
    per_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table_rows(table):
        per_kind[row["kind"]].append(row)
    certificate = dict(table.certificate or {})
    for listed in ("predicted_ms", "measured_ms"):
        certificate.pop(listed, None)
    return {
        **asdict(table.conditions),
        **{kind: _range(rows) for kind, rows in per_kind.items()},
        "anchor_ms": table.anchor_ms,
        "runs": len(table.runs),
        "hash": table.hash,
        "certificate": certificate or "none: `adapt costs certify` measures one",
        "inference": table.interpolation or "none: every row was measured",
    }


def _range(rows: list[dict[str, Any]]) -> str:
    costs = [row["cost_ms"] for row in rows if row["cost_ms"] is not None]
    # Costs are known once boundaries are, which another shard has, or a stopped run had ahead.
    known = f"{min(costs):.3f} to {max(costs):.3f} ms" if costs else "no boundary measured yet"
    inferred = sum(row["inferred"] for row in rows)
    drifted = sum(2 * row["drifted"] > row["rounds"] for row in rows)
    capped = sum(POWER_CAP in row["throttled"] for row in rows)
    counts = {"inferred": inferred, "drifted": drifted, "at the power cap": capped}
    notes = [f"{number} {what}" for what, number in counts.items() if number]
    return ", ".join([f"{len(rows)} rows", known, *notes])


def write_csv(table: CostTable, path: Path) -> None:
    """Write one line per row; columns that a unit does not have stay empty."""
    rows = table_rows(table)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_heat_map(table: CostTable, path: Path) -> None:
    """Draw the latency of blocks' first operations over (c_in, c_out), per block and kernel.

    Of several expansions the largest is drawn.

    Raises:
        AdaptError: If the table has no such operation, or the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(table)
    if not panels:
        raise AdaptError(f"cost table {table.path} has no operation to draw; measure some first")
    blocks = sorted({block for block, _ in panels}, reverse=True)
    kernels = sorted({kernel for _, kernel in panels})
    figure = Figure(figsize=(4 * len(kernels), 3 * len(blocks)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(blocks), len(kernels), squeeze=False)
    for row, block in zip(grid, blocks, strict=True):
        for axes, kernel in zip(row, kernels, strict=True):
            if (block, kernel) in panels:
                _draw(axes, panels[block, kernel])
            height, width, stride = block
            axes.set_title(f"{height}x{width} stride {stride}, kernel {kernel}", fontsize=10)
    figure.suptitle(f"latency in ms, {table.conditions} ({table.conditions.device})")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _panels(table: CostTable) -> dict[tuple[tuple[int, int, int], int], Panel]:
    costs = {
        unit: row["cost_ms"]
        for row, key in zip(table_rows(table), sorted(table.rows()), strict=True)
        if isinstance(unit := parse_key(key), OperationUnit) and not unit.residual
    }
    widest = max((unit.expansion for unit in costs), default=0)
    panels: dict[tuple[tuple[int, int, int], int], Panel] = defaultdict(dict)
    for unit, cost in costs.items():
        if unit.expansion == widest and cost is not None:
            block = unit.height, unit.width, unit.stride
            panels[block, unit.kernel][unit.c_in, unit.c_out] = cost
    return dict(panels)


def _draw(axes: "Axes", panel: Panel) -> None:
    inputs = sorted({c_in for c_in, _ in panel})
    outputs = sorted({c_out for _, c_out in panel})
    values = np.full((len(inputs), len(outputs)), np.nan)
    for (c_in, c_out), cost in panel.items():
        values[inputs.index(c_in), outputs.index(c_out)] = cost
    image = axes.imshow(values, aspect="auto", origin="lower", cmap="viridis")
    axes.figure.colorbar(image, ax=axes)
    _label(axes.set_xticks, outputs)
    _label(axes.set_yticks, inputs)
    axes.set_xlabel("output channels")
    axes.set_ylabel("input channels")


def _label(set_ticks: Any, widths: list[int], limit: int = 6) -> None:
    shown = np.linspace(0, len(widths) - 1, min(limit, len(widths))).round().astype(int)
    set_ticks(shown, [str(widths[i]) for i in shown])
