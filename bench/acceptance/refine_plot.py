"""What does a re-ranked front look like?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt.artifacts import atomic_path
from search.derive.held_out import LEAST_AP
from search.recipe.budget import Budget


def plot_front(rows: Sequence[dict[str, Any]], path: Path, budget: Budget | None = None) -> None:
    """Draw AP (or loss, while AP is about 0) over measured latency (or multiply-adds).

    Args:
        rows: Networks of ``front.json``, the cheapest first.
        path: PNG file.
        budget: Drawn where it is in the unit of the costs.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    measured = "measured_ms" in rows[0]
    costs = [row["measured_ms"] if measured else row["madds"] / 1e9 for row in rows]
    by_ap = max(row["ap"] for row in rows) >= LEAST_AP
    values = [100 * row["ap"] if by_ap else row["loss"] for row in rows]
    points = list(zip(costs, values, rows, strict=True))
    kinds = {"of the front": 0, "bred from it": 1}
    for (name, bred), colour in zip(kinds.items(), ("tab:blue", "tab:orange"), strict=True):
        some = [(x, y) for x, y, row in points if (row["generation"] > 0) == bred]
        if some:
            axes.scatter(*zip(*some, strict=True), color=colour, label=name, zorder=3)
    optimal = [(x, y) for x, y, row in points if row["pareto"]]
    axes.plot(*zip(*optimal, strict=True), color="black", lw=1, label="Pareto-optimal", zorder=2)
    best = [(x, y) for x, y, row in points if row["best"]]
    for x, y in best:
        axes.scatter(x, y, s=260, facecolors="none", edgecolors="tab:red", label="chosen")
    for number, (x, y, _) in enumerate(points, start=1):
        axes.annotate(f"{number:02d}", (x, y), (8, 6), textcoords="offset points", fontsize=8)
    if budget and measured == (budget.unit == "ms"):
        limit = budget.amount if measured else budget.amount / 1e9
        axes.axvline(limit, color="tab:red", ls="--", lw=1, label=f"budget {budget}")
    axes.set_xlabel("measured latency (ms)" if measured else "multiply-adds (10$^9$)")
    axes.set_ylabel("AP on held-out images (%)" if by_ap else "loss on held-out images")
    if not by_ap:
        axes.invert_yaxis()
    axes.set_title("Networks with the supernet's weights")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
