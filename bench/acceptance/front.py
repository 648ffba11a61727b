"""What is written of a re-ranked front? (`front.json`, `front.png`, and its networks as files)"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.architecture import Architecture, Choices
from adapt.artifacts import atomic_path, header, write_json
from adapt.errors import AdaptError
from search.derive.derive import fresh_front
from search.derive.finished import FinishedSearch
from search.derive.held_out import LEAST_AP, HeldOut
from search.recipe.budget import Budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SLACK = 1e-9  # relative; the network that a budget was set by may cost more by rounding
Row = dict[str, Any]  # of a network in front.json


@dataclass(frozen=True)
class Examined:
    """A network, how good it is on held-out images, and what it costs.

    Attributes:
        choices: The network.
        generation: In which it was bred; 0 if it is of the front.
        held_out: How it does on held-out images.
        costs: Multiply-adds; predicted and measured latency where there is a table.
    """

    choices: Choices
    generation: int
    held_out: HeldOut
    costs: dict[str, float]

    @property
    def cost(self) -> float:
        """Measured latency in milliseconds, or multiply-adds."""
        return self.costs.get("measured_ms", self.costs["madds"])

    def is_within(self, budget: Budget | None) -> bool:
        """Return whether the network meets a budget as it was measured, or counted."""
        if budget is None:
            return True
        cost = self.costs["measured_ms" if budget.unit == "ms" else "madds"]
        return cost <= budget.amount * (1 + SLACK)


def is_pareto_optimal(network: Examined, networks: Sequence[Examined]) -> bool:
    """Return whether no other network is better and costs no more, or costs less and is as good."""
    rank, cost = network.held_out.rank, network.cost
    return not any(
        other.cost <= cost
        and other.held_out.rank >= rank
        and (other.cost, other.held_out.rank) != (cost, rank)
        for other in networks
    )


def write_front(
    search: FinishedSearch,
    networks: Sequence[Examined],
    budget: Budget | None,
    out: Path,
    **content: Any,
) -> dict[str, Any]:
    """Write all networks, ``front.json``, ``front.png``, and the best network as ``arch.json``.

    Args:
        search: The search.
        networks: Networks of its space.
        budget: What the best one may cost; measured, if it is a latency.
        out: Folder.
        content: What else ``front.json`` is to hold.

    Returns:
        The best network, and the rows of ``front.json``, the cheapest first.

    Raises:
        AdaptError: If no network is within the budget; everything but ``arch.json`` is written.
    """
    fresh_front(out)
    networks = sorted(networks, key=lambda network: network.cost)
    fitting = [network for network in networks if network.is_within(budget)]
    best = max(fitting, key=lambda network: network.held_out.rank, default=None)
    rows = []
    for number, network in enumerate(networks, start=1):
        path = out / f"arch-{number:02d}.json"
        _save(network, path, search)
        flags = {"pareto": is_pareto_optimal(network, networks), "best": network is best}
        rows.append({"architecture": str(path), **_row(network), **flags})
    content = {"search": search.identity, **content, "networks": rows}
    write_json(out / "front.json", header("refined-front", **content))
    plot_front(rows, out / "front.png", budget)
    if best is None:
        raise AdaptError(
            f"no network was measured within {budget}, the fastest takes {networks[0].cost:.4g} ms "
            f"(all are in {out / 'front.json'}); run it again when the machine is quiet, or "
            "raise the budget"
        )
    path = out / "arch.json"
    architecture = _save(best, path, search)
    shown = {"architecture": str(path), "network": str(architecture), **_row(best)}
    return {**shown, "plot": str(out / "front.png"), "networks": rows}


def _row(network: Examined) -> Row:
    metrics = network.held_out.metrics
    quality = {"loss": network.held_out.loss, "ap": metrics.ap, "ap50": metrics.ap50}
    return {"generation": network.generation, **network.costs, **quality}


def _save(network: Examined, path: Path, search: FinishedSearch) -> Architecture:
    architecture = search.network(network.choices)
    architecture.save(
        path,
        rule=f"refined, generation {network.generation}",
        search=search.identity,
        costs=network.costs,
        held_out={"loss": network.held_out.loss, **network.held_out.metrics.to_dict()},
    )
    return architecture


def plot_front(rows: Sequence[Row], path: Path, budget: Budget | None = None) -> None:
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
    by_ap = max(row["ap"] for row in rows) >= LEAST_AP
    costs = [row["measured_ms"] if measured else row["madds"] / 1e9 for row in rows]
    values = [100 * row["ap"] if by_ap else row["loss"] for row in rows]
    _draw_networks(axes, rows, list(zip(costs, values, strict=True)))
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


def _draw_networks(
    axes: "Axes", rows: Sequence[Row], points: Sequence[tuple[float, float]]
) -> None:
    """Draw each network as a numbered point, and what is Pareto-optimal or chosen."""
    pairs = list(zip(points, rows, strict=True))
    kinds = (("of the front", False, "tab:blue"), ("bred from it", True, "tab:orange"))
    for label, bred, colour in kinds:
        of_kind = [point for point, row in pairs if (row["generation"] > 0) == bred]
        if of_kind:
            axes.scatter(*zip(*of_kind, strict=True), color=colour, label=label, zorder=3)
    optimal = [point for point, row in pairs if row["pareto"]]
    axes.plot(*zip(*optimal, strict=True), color="black", lw=1, label="Pareto-optimal", zorder=2)
    for point, row in pairs:
        if row["best"]:
            axes.scatter(*point, s=260, facecolors="none", edgecolors="tab:red", label="chosen")
    for number, point in enumerate(points, start=1):
        axes.annotate(f"{number:02d}", point, (8, 6), textcoords="offset points", fontsize=8)
