"""What do the rows of a cost table say? (table, CSV, heat map)"""

import csv
import io
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adapt.artifacts import atomic_path, write_text
from adapt.cost_table import CostTable
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Panel = dict[tuple[int, int], float]  # (c_in, c_out) -> milliseconds


def table_rows(table: CostTable) -> list[dict[str, Any]]:
    """Return one dictionary per row: kind of unit, its fields, and what was measured."""
    rows = []
    for key, cost in sorted(table.rows().items()):
        kind, *fields = key.split()
        described = dict(field.split("=", 1) for field in fields)
        rows.append({"kind": kind, **described, **asdict(cost)})
    return rows


def summarise(table: CostTable) -> dict[str, Any]:
    """Return the conditions of a table, and per kind of unit how many rows and what range."""
    per_kind: dict[str, list[float]] = defaultdict(list)
    for row in table_rows(table):
        per_kind[row["kind"]].append(row["min_ms"])
    ranges = {
        kind: f"{len(costs)} rows, {min(costs):.3f} to {max(costs):.3f} ms"
        for kind, costs in per_kind.items()
    }
    certificate = table.certificate or "none: `adapt costs certify` measures one"
    return {
        **asdict(table.conditions),
        **ranges,
        "hash": table.hash,
        "certificate": certificate,
        "interpolation": table.interpolation or "none: every row was measured",
    }


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
        raise AdaptError(f"cost table {table.path} has no MBConv to draw; measure some first")
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
    figure.suptitle(f"minimum latency in ms, {table.conditions} ({table.conditions.device})")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def _panels(table: CostTable) -> dict[tuple[tuple[int, int, int], int], Panel]:
    first = [
        {k: v if k == "min_ms" else int(v) for k, v in row.items() if k in _NEEDED}
        for row in table_rows(table)
        if row["kind"] == "mbconv" and row["residual"] == "0"
    ]
    widest = max((row["expansion"] for row in first), default=0)
    panels: dict[tuple[tuple[int, int, int], int], Panel] = defaultdict(dict)
    for row in first:
        if row["expansion"] == widest:
            block = row["height"], row["width"], row["stride"]
            panels[block, row["kernel"]][row["c_in"], row["c_out"]] = row["min_ms"]
    return dict(panels)


_NEEDED = ("c_in", "c_out", "kernel", "expansion", "stride", "height", "width", "min_ms")


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


def _label(set_ticks: Any, widths: list[int], most: int = 6) -> None:
    shown = np.linspace(0, len(widths) - 1, min(most, len(widths))).round().astype(int)
    set_ticks(shown, [str(widths[i]) for i in shown])
