"""What is written about a front that was re-ranked?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture, Choices
from adapt.artifacts import header, write_json
from adapt.errors import AdaptError
from bench.acceptance.refine_plot import plot_front
from search.derive.derive import fresh_front
from search.derive.finished import FinishedSearch
from search.derive.held_out import HeldOut
from search.recipe.budget import Budget

SLACK = 1e-9  # relative; the budget's network may be dearer by rounding


@dataclass(frozen=True)
class Tried:
    """A network, how good it is, and what it costs.

    Attributes:
        choices: The network.
        generation: When it was bred; 0 if it is of the front.
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


def is_optimal(one: Tried, everybody: list[Tried]) -> bool:
    """Return whether nobody is better and no dearer, or cheaper and as good."""
    rank, cost = one.held_out.rank, one.cost
    return not any(
        other.cost <= cost
        and other.held_out.rank >= rank
        and (other.cost, other.held_out.rank) != (cost, rank)
        for other in everybody
    )


def write_front(
    search: FinishedSearch, tried: list[Tried], budget: Budget | None, out: Path, **content: Any
) -> dict[str, Any]:
    """Write all networks, ``front.json``, ``front.png``, and the best network as ``arch.json``.

    Args:
        search: The search.
        tried: Networks of its space.
        budget: What the best one may cost; measured, if it is a latency.
        out: Folder.
        content: What else ``front.json`` is to hold.

    Returns:
        The best network, and the rows of ``front.json``, the cheapest first.

    Raises:
        AdaptError: If no network is within the budget; everything but ``arch.json`` is written.
    """
    fresh_front(out)
    tried = sorted(tried, key=lambda one: one.cost)
    fitting = [one for one in tried if _fits(one, budget)]
    best = max(fitting, key=lambda one: one.held_out.rank, default=None)
    rows = []
    for number, one in enumerate(tried, start=1):
        path, architecture = out / f"arch-{number:02d}.json", search.network(one.choices)
        row = _row(one) | {"pareto": is_optimal(one, tried), "best": one is best}
        _save(architecture, path, search, one)
        rows.append({"architecture": str(path), **row})
    content = {"search": search.identity, **content, "networks": rows}
    write_json(out / "front.json", header("refined-front", **content))
    plot_front(rows, out / "front.png", budget)
    if best is None:
        raise AdaptError(
            f"no network was measured within {budget}, the fastest takes {tried[0].cost:.4g} ms "
            f"(all are in {out / 'front.json'}); run it again when the machine is quiet, or "
            "raise the budget"
        )
    path, architecture = out / "arch.json", search.network(best.choices)
    _save(architecture, path, search, best)
    shown = {"architecture": str(path), "network": str(architecture), **_row(best)}
    return {**shown, "plot": str(out / "front.png"), "networks": rows}


def _fits(one: Tried, budget: Budget | None) -> bool:
    """Return whether a network is within a budget as it was measured, or counted."""
    if budget is None:
        return True
    cost = one.costs["measured_ms" if budget.unit == "ms" else "madds"]
    return cost <= budget.amount * (1 + SLACK)


def _row(one: Tried) -> dict[str, Any]:
    metrics = one.held_out.metrics
    quality = {"loss": one.held_out.loss, "ap": metrics.ap, "ap50": metrics.ap50}
    return {"generation": one.generation, **one.costs, **quality}


def _save(architecture: Architecture, path: Path, search: FinishedSearch, one: Tried) -> None:
    found = {"loss": one.held_out.loss, **one.held_out.metrics.to_dict()}
    architecture.save(
        path,
        rule=f"refined, generation {one.generation}",
        search=search.identity,
        costs=one.costs,
        held_out=found,
    )
