"""Which one network does a finished search stand for?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.architecture import Architecture, Choices
from adapt.artifacts import atomic_path, header, make_folder, read_json, write_json
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import CostFunction, CostModel
from adapt.cost.table import CostTable
from adapt.cost.units import madds
from adapt.errors import AdaptError
from adapt.network.supernet import Supernet
from adapt.space import SearchSpace
from search.derive.exact import Derived, Deriver
from search.recipe.budget import Budget, Unit
from search.recipe.costs import check_certificate, check_table, costs_of
from search.recipe.recipe import Recipe
from search.train.checkpoint import read_checkpoint


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
            architecture = search.network(search.within(budget))
            rule = f"budget {budget}"
        found = search.costs(architecture)
    architecture.save(out, rule=rule, search=search.identity, costs=found)
    return {"architecture": str(out), "network": str(architecture), **found}


def fresh_front(folder: Path) -> None:
    """Create the folder of a front, without the networks of an earlier one.

    Raises:
        AdaptError: If it cannot be written to, or its ``front.json`` is damaged.
    """
    make_folder(folder)
    listing = folder / "front.json"
    if not listing.exists():
        return
    content = read_json(listing, "front")
    names = [Path(row["architecture"]).name for row in content.get("networks", [])]
    if content.get("format") == "adapt-refined-front":
        names.append("arch.json")
    for name in names:
        (folder / name).unlink(missing_ok=True)


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
    make_folder(out)
    unit: Unit = "ms" if costs else "madds"
    with open_search(searched, costs, uncertified=uncertified) as search:
        front = [(search.network(best), best.score) for best in search.deriver(unit).front(number)]
        found = [(network, score, search.costs(network)) for network, score in front]
    fresh_front(out)
    rows = []
    for position, (network, score, network_costs) in enumerate(found, start=1):
        path = out / f"arch-{position:02d}.json"
        network.save(path, rule=f"front {unit}", search=search.identity, costs=network_costs)
        rows.append({"architecture": str(path), "score": score, **network_costs})
    write_json(out / "front.json", header("front", networks=rows))
    _plot(rows, out / "front.png")
    return rows


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search and what its networks cost.

    Attributes:
        supernet: The supernet with its alphas and betas.
        recipe: What was searched, and how; its device is that of the table.
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

    def within(self, budget: Budget) -> Derived:
        """Return the most probable network within a budget.

        Raises:
            AdaptError: If none is, or latencies are asked for without a fitting table.
        """
        deriver = self.deriver(budget.unit)
        budget.check_reachable(deriver.cheapest)
        return deriver.best(budget.amount)

    def cost_model(self, unit: Unit) -> CostModel:
        """Return what every choice costs, latencies as the table's certificate corrects them.

        Raises:
            AdaptError: If latencies are asked for without a fitting table.
        """
        config, size = (
            self.recipe.detector_config(len(self.class_names)),
            self.recipe.measured_size(),
        )
        cost: CostFunction = madds
        correction = 1.0, 0.0
        if unit == "ms":
            if self.table is None:
                raise AdaptError(
                    "a budget in milliseconds needs a cost table; measure one with `adapt profile "
                    "RECIPE` and pass it with --costs"
                )
            check_table(self.recipe, self.table)
            cost, size = self.table.lookup, self.recipe.input.fixed()
            correction = self.table.correction
        detectors = DetectorSpace(self.supernet.space, config, size)
        return detectors.costs(cost).corrected(*correction)

    def network(self, best: Derived | Choices) -> Architecture:
        """Return the network of derived choices."""
        return Choices(best.ops, best.widths).architecture(self.supernet.space)

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
        costs: Cost table, if latencies matter; of any device.
        uncertified: Whether a table without a certificate will do.

    Raises:
        AdaptError: If the search is unfinished, or the table has no certificate.
    """
    supernet, recipe, content = load_searched(searched)
    states = content["states"]["detector"]
    found = tuple(content["class_names"]), content["identity"], states
    if costs is None:
        yield FinishedSearch(supernet, recipe, *found, None)
        return
    with CostTable.open(costs) as table:
        if not uncertified:
            check_certificate(table)
        # The network is derived for the device of the table, wherever the search was.
        options = table.conditions.device_options()
        recipe = recipe.with_device(**options, name=table.conditions.device)
        yield FinishedSearch(supernet, recipe, *found, table)


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw score over cost: as a budget would count it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    name = next(n for n in ("corrected_ms", "predicted_ms", "madds") if n in rows[0])
    costs = [row[name] / (1e9 if name == "madds" else 1.0) for row in rows]
    axes.plot(costs, [row["score"] for row in rows], marker="o", color="tab:blue")
    for number, (x, row) in enumerate(zip(costs, rows, strict=True), start=1):
        axes.annotate(f"{number:02d}", (x, row["score"]), (4, -10), textcoords="offset points")
    axes.set_xlabel("multiply-adds (10$^9$)" if name == "madds" else "predicted latency (ms)")
    axes.set_ylabel("log probability of the network")
    axes.set_title("Best network of each budget")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
