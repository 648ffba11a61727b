"""What does a finished search, or a file of scores, hold, and what do its networks cost?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.architecture import Architecture, Choices
from adapt.artifacts import parsing, typed
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import CostFunction, CostModel
from adapt.cost.table import CostTable
from adapt.cost.units import madds
from adapt.errors import AdaptError
from adapt.network.supernet import Supernet
from adapt.space import SearchSpace
from search.derive.exact import Derived, Deriver
from search.derive.ledger import ledger
from search.derive.scores import Scores
from search.recipe.budget import Budget, Unit
from search.recipe.recipe import Recipe
from search.recipe.search_cost import check_certificate, check_table, network_costs
from search.train.checkpoint import read_checkpoint


def load_searched(path: Path) -> tuple[Supernet, Recipe, dict[str, Any]]:
    """Read a finished search: the supernet with its alphas and betas, the recipe, the header.

    Raises:
        AdaptError: If the file is missing, damaged or the search is unfinished.
    """
    content = read_checkpoint(path, "supernet")
    with parsing("search", path, "run `adapt search` again"):
        if typed(int, content["step"]) < typed(int, content["total_steps"]):
            raise AdaptError(
                f"the search in {path} stopped after {content['step']} of {content['total_steps']} "
                "steps; run the same `adapt search` again to finish it"
            )
        recipe = Recipe.from_dict(content["recipe"])
        # The space as it was searched: its file may have been edited, or lie on another machine.
        supernet = recipe.search.supernet(SearchSpace.restore(content["space"]))
        prefix = "backbone.body."
        states = content["states"]["detector"]
        supernet.load_state_dict(
            {name.removeprefix(prefix): t for name, t in states.items() if name.startswith(prefix)}
        )
        typed(tuple[str, ...], content["class_names"])
    return supernet, recipe, content


@dataclass(frozen=True)
class FinishedSearch:
    """A finished search, or scores of a trained detector, and what its networks cost.

    Attributes:
        found: The supernet with its alphas and betas, or scores of all choices.
        space: The space.
        recipe: What was searched, and how; its device is the table's, if there is one.
        class_names: Object classes, in the order of their labels.
        identity: Hash of everything that defined the search.
        states: State of the whole detector around a supernet.
        table: Open cost table; None to count multiply-adds only.
    """

    found: Supernet | Scores
    space: SearchSpace
    recipe: Recipe
    class_names: tuple[str, ...]
    identity: Any
    states: dict[str, Tensor]
    table: CostTable | None

    @property
    def supernet(self) -> Supernet:
        """The supernet.

        Raises:
            AdaptError: If networks are derived by scores.
        """
        if isinstance(self.found, Scores):
            raise AdaptError(
                "scores have no supernet to take an arg max or weights from; derive with --budget "
                "or --pareto, and without --refine"
            )
        return self.found

    def deriver(self, unit: Unit) -> Deriver:
        """Return what finds the most probable networks within budgets of a unit.

        Raises:
            AdaptError: If latencies are asked for without a fitting table.
        """
        model = self.cost_model(unit)
        if isinstance(self.found, Scores):
            return self.found.deriver(model)
        return Deriver.of(self.found, model)

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
        config = self.recipe.detector_config(len(self.class_names))
        size = self.recipe.measured_size()
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
        detectors = DetectorSpace(self.space, config, size)
        return detectors.costs(cost).corrected(*correction)

    def network(self, choices: Choices) -> Architecture:
        """Return the network of choices of the space."""
        return choices.architecture(self.space)

    def explained(self, architecture: Architecture) -> dict[str, Any]:
        """Return what an architecture file says of why this network; only scores can tell.

        Args:
            architecture: A network of the space.
        """
        if not isinstance(self.found, Scores):
            return {}
        unit: Unit = "ms" if self.table else "madds"
        entries = ledger(self.found, self.cost_model(unit), self.space, architecture)
        blocks = [entry.to_dict() for entry in entries]
        return {"ledger": {"unit": unit, "blocks": blocks}} if entries else {}

    def costs(self, architecture: Architecture) -> dict[str, float]:
        """Return multiply-adds, and latency where there is a table."""
        return network_costs(architecture, self.recipe, len(self.class_names), self.table)


@dataclass(frozen=True)
class SearchFiles:
    """The files that networks are derived from.

    Attributes:
        searched: ``supernet.pt`` of a finished search, or the file of ``adapt score``.
        costs: Cost table of any device; None to count multiply-adds only.
        uncertified: Whether a table without a certificate will do.
        doubtful: Whether scores whose sums rank networks badly will do.
    """

    searched: Path
    costs: Path | None = None
    uncertified: bool = False
    doubtful: bool = False

    @contextmanager
    def open(self) -> Iterator[FinishedSearch]:
        """Open the search, with its cost table for as long as it is used.

        Raises:
            AdaptError: If the search is unfinished, or the table has no certificate.
        """
        search = self._opened()
        if self.costs is None:
            yield search
            return
        with CostTable.open(self.costs) as table:
            if not self.uncertified:
                check_certificate(table)
            # The network is derived for the device of the table, wherever the search was.
            options = table.conditions.device_options()
            recipe = search.recipe.with_device(**options, name=table.conditions.device)
            yield replace(search, recipe=recipe, table=table)

    @property
    def costs_identity(self) -> list[Any]:
        """What latencies by the table depend on; empty without a table."""
        if not self.costs:
            return []
        with CostTable.open(self.costs) as table:
            return [table.hash, table.correction]

    @property
    def by_scores(self) -> bool:
        """Whether networks are derived by scores."""
        return self.searched.suffix == ".json"

    def _opened(self) -> FinishedSearch:
        found: Supernet | Scores
        if self.by_scores:
            found, content = Scores.load(
                self.searched, uncertified=self.uncertified or self.doubtful
            )
            with parsing("scores", self.searched, "score again"):
                recipe, states = Recipe.from_dict(content["recipe"]), dict[str, Tensor]()
                space = SearchSpace.restore(content["space"])
                found.check_fits(space)
        else:
            found, recipe, content = load_searched(self.searched)
            states, space = content["states"]["detector"], found.space
        with parsing("search", self.searched, "make it again"):
            names, identity = typed(tuple[str, ...], content["class_names"]), content["identity"]
        return FinishedSearch(found, space, recipe, names, identity, states, None)
