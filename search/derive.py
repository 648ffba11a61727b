"""Which one network does a finished search stand for?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.architecture import Architecture
from adapt.artifacts import atomic_path, header, make_folder, write_json
from adapt.cost import CostModel, UnitCost
from adapt.cost_table import CostTable
from adapt.errors import AdaptError
from adapt.inherit import Choices
from adapt.space import SearchSpace
from adapt.supernet import Supernet, architecture_of
from adapt.units import madds
from search.budget import Derived, Deriver
from search.checkpoint import read_checkpoint
from search.costs import check_certificate, check_table, costs_of
from search.recipe import Recipe
from search.target import Budget, Unit


def load_searched(path: Path) -> tuple[Supernet, Recipe, dict[str, Any]]:
    """Read a finished search: the supernet with its alphas and betas, the recipe, the header.

    Raises:
        AdaptError: If the file is missing, damaged or the search is unfinished.
    """
    content = read_checkpoint(path, "supernet")
    if content["step"] < content["total_steps"]:
        raise AdaptError(
            f"the search in {path} stopped after {content['step']} of {content['total_steps']} "
            "steps; run the same `adapt search` again to finish it"
        )
    recipe = Recipe.from_dict(content["recipe"])
    # The space as it was searched: its file may have been edited, or lie on another machine.
    how = recipe.search
    supernet = Supernet(
        SearchSpace.restore(content["space"]),
        mask=how.mask,
        gate_norm=how.gate_norm,
        gates=how.gates,
    )
    prefix = "backbone.body."
    states = content["states"]["detector"]
    supernet.load_state_dict(
        {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
    )
    return supernet, recipe, content


def derive(
    searched: Path,
    out: Path,
    costs: Path | None = None,
    *,
    uncertified: bool = False,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Write one network of a finished search to ``out``.

    Args:
        searched: ``supernet.pt``.
        out: Architecture file to write.
        costs: Cost table that predicts the latency of the network.
        uncertified: Whether a table without a certificate will do.
        budget: What it may cost; the arg max network (paper section III-B) if None.

    Returns:
        The network, what it costs, and what the search expected.

    Raises:
        AdaptError: If the search is unfinished, the table does not fit or has no certificate, or no
            network fits the budget.
    """
    with open_search(searched, costs, uncertified=uncertified) as search:
        architecture = search.supernet.argmax()
        rule = "argmax"
        if budget:
            best = search.deriver(budget.unit).best(budget.in_sums(search.table))
            architecture, rule = search.network(best), f"budget {budget}"
        found = search.costs(architecture)
    architecture.save(out, rule=rule, search=search.identity, costs=found)
    return {"architecture": str(out), "network": str(architecture), **found}


def fresh_front(folder: Path) -> None:
    """Create the folder of a front, without the architectures that an earlier one left there.

    Raises:
        AdaptError: If it cannot be written to.
    """
    make_folder(folder)
    for old in folder.glob("arch*.json"):
        old.unlink()


def derive_front(
    searched: Path,
    out: Path,
    number: int,
    costs: Path | None = None,
    *,
    uncertified: bool = False,
) -> list[dict[str, Any]]:
    """Write the best networks of many budgets, ``front.json`` and the plot ``front.png``.

    The budgets are latencies if a cost table is given, multiply-adds otherwise.

    Args:
        searched: ``supernet.pt``.
        out: Folder to write to; the networks are ``arch-01.json`` and so on, the cheapest first.
        number: Budgets.
        costs: Cost table.
        uncertified: Whether a table without a certificate will do.

    Returns:
        File, score and costs of every network.

    Raises:
        AdaptError: If the search is unfinished, or the table does not fit or has no certificate.
    """
    fresh_front(out)
    rows = []
    with open_search(searched, costs, uncertified=uncertified) as search:
        unit: Unit = "ms" if costs else "madds"
        for position, best in enumerate(search.deriver(unit).front(number), start=1):
            architecture, path = search.network(best), out / f"arch-{position:02d}.json"
            found = search.costs(architecture)
            architecture.save(path, rule=f"front {unit}", search=search.identity, costs=found)
            rows.append({"architecture": str(path), "score": best.score, **found})
    write_json(out / "front.json", header("front", networks=rows))
    _plot(rows, "predicted_ms" if costs else "madds", out / "front.png")
    return rows


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search and what its networks cost.

    Attributes:
        supernet: The supernet with its alphas and betas.
        recipe: What was searched, and how.
        class_names: Object classes, in the order of their labels.
        identity: Hash of everything that defined the search.
        states: State of the whole detector around the supernet.
        table: Open cost table; None to count multiply-adds only.
    """

    supernet: Supernet
    recipe: Recipe
    class_names: tuple[str, ...]
    identity: Any
    states: dict[str, Tensor]
    table: CostTable | None

    def deriver(self, unit: Unit) -> Deriver:
        """Return what finds networks within budgets of a unit."""
        ops, widths = self.supernet.log_probabilities()
        return Deriver(
            self.cost_model(unit),
            [[p.numpy() for p in block] for block in ops],
            [p.numpy() for p in widths],
        )

    def cost_model(self, unit: Unit) -> CostModel:
        """Return what every choice costs.

        Raises:
            AdaptError: If latencies are asked for without a fitting table.
        """
        config, size = (
            self.recipe.detector_config(len(self.class_names)),
            self.recipe.measured_size(),
        )
        cost: UnitCost = madds
        if unit == "ms":
            if self.table is None:
                raise AdaptError(
                    "a budget in milliseconds needs a cost table; measure one with `adapt profile "
                    "RECIPE` and pass it with --costs"
                )
            check_table(self.recipe, self.table)
            cost, size = self.table.lookup, self.recipe.input.fixed()
        return CostModel.build(self.supernet.space, config, size, cost)

    def network(self, best: Derived | Choices) -> Architecture:
        """Return the network of derived choices."""
        return architecture_of(self.supernet.space, best.ops, best.widths)

    def costs(self, architecture: Architecture) -> dict[str, float]:
        """Return multiply-adds, and latency where there is a table."""
        return costs_of(architecture, self.recipe, len(self.class_names), self.table)


@contextmanager
def open_search(
    searched: Path, costs: Path | None, *, uncertified: bool = False
) -> Iterator[FinishedSearch]:
    """Open a finished search, with its cost table for as long as it is used.

    Args:
        searched: ``supernet.pt``.
        costs: Cost table, if latencies matter.
        uncertified: Whether a table without a certificate will do.

    Raises:
        AdaptError: If the search is unfinished, or the table has no certificate.
    """
    supernet, recipe, content = load_searched(searched)
    states = content["states"]["detector"]
    found = recipe, tuple(content["class_names"]), content["identity"], states
    if costs is None:
        yield FinishedSearch(supernet, *found, None)
        return
    with CostTable.open(costs) as table:
        if not uncertified:
            check_certificate(table)
        yield FinishedSearch(supernet, *found, table)


def _plot(rows: list[dict[str, Any]], cost: str, path: Path) -> None:
    """Draw score over cost."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    scale = 1.0 if cost == "predicted_ms" else 1e9
    costs = [row[cost] / scale for row in rows]
    axes.plot(costs, [row["score"] for row in rows], marker="o", color="tab:blue")
    for number, (x, row) in enumerate(zip(costs, rows, strict=True), start=1):
        axes.annotate(f"{number:02d}", (x, row["score"]), (4, -10), textcoords="offset points")
    axes.set_xlabel("predicted latency (ms)" if scale == 1.0 else "multiply-adds (10$^9$)")
    axes.set_ylabel("log probability of the network")
    axes.set_title("Best network of each budget")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
