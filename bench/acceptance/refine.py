"""Which networks of a front are best on held-out images? (`derive --refine`, `--evolve`)"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.architecture import Choices
from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Stage, silent_stage
from bench.acceptance.front import SLACK, Examined, write_front
from bench.acceptance.stopwatch import Stopwatch
from bench.acceptance.verify import approached
from bench.costs.recipe_table import as_certified
from bench.latency.workers import Measurement
from search.derive.evolve import Individual, cost_of, evolve
from search.derive.exact import Derived
from search.derive.finished import FinishedSearch, SearchFiles
from search.derive.held_out import Examiner
from search.recipe.budget import Budget, Unit


@dataclass(frozen=True)
class Refinement:
    """Which networks are compared on held-out images.

    Attributes:
        front: Budgets of the front.
        keep: How many networks of the front are compared, those of the highest probability.
        generations: Generations of children that are bred from these; 0 for none.
        budget: What a network may cost; None for the whole front.
    """

    front: int
    keep: int
    generations: int = 0
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.front:
            raise AdaptError(
                f"--refine must lie in [1, {self.front}], the networks of --pareto, got {self.keep}"
            )

    @classmethod
    def of(
        cls, front: int | None, keep: int | None, generations: int, budget: Budget | None
    ) -> "Refinement":
        """Return what the options of the command ask for.

        Raises:
            AdaptError: If one is missing or out of range.
        """
        if keep is None:
            raise AdaptError(
                f"--evolve {generations} breeds from re-ranked networks; add --refine, such as "
                "--refine 5"
            )
        if front is None:
            raise AdaptError(
                f"--refine {keep} re-ranks networks of a front; add --pareto, such as --pareto 20"
            )
        return cls(front, keep, generations, budget)


def refine_front(
    files: SearchFiles,
    out: Path,
    refinement: Refinement,
    *,
    data: Path | None = None,
    how: Measurement | None = None,
    stage: Stage = silent_stage,
) -> dict[str, Any]:
    """Re-rank the best networks of a search by loss and AP on held-out images.

    Every network inherits the supernet's weights, and its BatchNorms are recalibrated on training
    images. Latencies are measured where a cost table is given.

    Args:
        files: The search, and the cost table of this machine.
        out: Folder for ``arch.json`` (the best network), ``front.json``, ``front.png`` and one
            architecture file per network.
        refinement: Which networks.
        data: Folder of the data set; the recipe's if None.
        how: How to measure; as the table's certificate was if None.
        stage: Opens the progress display of a stage.

    Returns:
        The best network, all rows of ``front.json``, the split that networks were chosen on and the
        one that the recipe's benchmark reports.

    Raises:
        AdaptError: If data set, table or budget do not fit, or no network is within the budget.
    """
    make_folder(out)  # before minutes of work, not after
    with files.open() as search:
        recipe = search.recipe.with_data(data)
        search = replace(search, recipe=recipe)
        examiner = Examiner(search, recipe.split(recipe.data.train), recipe.split(recipe.data.val))
        stopwatch = None
        if search.table is not None:
            stopwatch = Stopwatch(search, how or as_certified(recipe, files.costs))
        with stopwatch or nullcontext():
            bred, examined = _Contest(search, refinement, examiner, stopwatch, stage).run()
        evolution = [_described(search, b) for b in bred] if refinement.generations else []
        splits = {"chosen_on": recipe.data.val, "benchmark": recipe.data.benchmark}
        content = {"asked": asdict(refinement), "evolution": evolution, **splits}
        return {**write_front(search, examined, refinement.budget, out, **content), **splits}


def _described(search: FinishedSearch, individual: Individual) -> dict[str, Any]:
    network = str(search.network(individual.choices))
    return {"generation": individual.generation, "loss": individual.loss, "network": network}


def candidates(
    search: FinishedSearch, refinement: Refinement, limit: float | None, fitting: Sequence[Derived]
) -> list[Derived]:
    """Return the front's networks of highest probability within a budget, and those that fit it.

    Args:
        search: A finished search.
        refinement: How many networks.
        limit: What one may cost by the cost model; None for the whole front.
        fitting: Networks that are known to fit; they are candidates whatever their probability.
    """
    deriver = search.deriver(_unit(search, refinement))
    networks = deriver.front(refinement.front)
    if limit:
        cheap_enough = [n for n in networks if n.cost <= limit * (1 + SLACK)]
        networks = [deriver.best(limit), *cheap_enough]
    most_probable = sorted(_distinct(networks), key=lambda n: -n.score)[: refinement.keep]
    return _distinct([*most_probable, *fitting])


def _distinct(networks: Iterable[Derived]) -> list[Derived]:
    return list({network.choices: network for network in networks}.values())


def _unit(search: FinishedSearch, refinement: Refinement) -> Unit:
    return refinement.budget.unit if refinement.budget else "ms" if search.table else "madds"


@dataclass(frozen=True)
class _Contest:
    """Compares networks of a front, and those that are bred from them."""

    search: FinishedSearch
    refinement: Refinement
    examiner: Examiner
    stopwatch: Stopwatch | None
    stage: Stage

    def run(self) -> tuple[list[Individual], list[Examined]]:
        """Return all networks by rising loss, and the finalists with AP and costs."""
        limit, fitting = self._limit()
        front = candidates(self.search, self.refinement, limit, fitting)
        bred = self._bred(front, limit)
        examined = self._examined(self._finalists(bred))
        return bred, self._timed(examined) if self.stopwatch else examined

    def _limit(self) -> tuple[float | None, list[Derived]]:
        """Return what a network may cost by the cost model, and the network known to fit."""
        budget = self.refinement.budget
        if budget is None:
            return None, []
        if budget.unit == "madds":
            return budget.amount, [self.search.within(budget)]
        self.search.deriver("ms")  # raises an error that names a table that is missing
        assert self.stopwatch is not None
        # A network is measured first: by predictions that are wrong by 4 %, none of the candidates
        # might fit.
        with self.stage("verify") as progress:
            approach = approached(self.search, budget, self.stopwatch, progress=progress)
        assert approach.best is not None
        return max(approach.best.network.cost, approach.aimed_ms()), [approach.best.network]

    def _bred(self, front: Sequence[Derived], limit: float | None) -> list[Individual]:
        """Return the front's networks and all that were bred from them, by rising loss."""
        if not self.refinement.generations:
            return [Individual(network.choices, 0) for network in front]
        model = self.search.cost_model(_unit(self.search, self.refinement))
        largest_cost = limit or max(network.cost for network in front)
        total = len(front) * (1 + self.refinement.generations)
        with self.stage("evolve") as progress:
            done = 0

            def loss(choices: Choices) -> float:
                nonlocal done
                value, done = self.examiner.loss(choices), done + 1
                progress(done, total, f"loss {value:.3f}")
                return value

            return evolve(
                self.search.space,
                [Individual(n.choices, 0, loss(n.choices)) for n in front],
                self.refinement.generations,
                loss=loss,
                fits=lambda choices: cost_of(model, choices) <= largest_cost * (1 + SLACK),
                seed=self.search.recipe.seed,
            )

    def _finalists(self, bred: Sequence[Individual]) -> list[Individual]:
        """Return all networks of the front, and those bred from it that are among the best."""
        front = [individual for individual in bred if individual.generation == 0]
        best = bred[: self.refinement.keep]
        return front + [individual for individual in best if individual.generation > 0]

    def _examined(self, finalists: Sequence[Individual]) -> list[Examined]:
        examined = []
        with self.stage("evaluate") as progress:
            for done, finalist in enumerate(finalists, start=1):
                choices = finalist.choices
                held_out = self.examiner.examine(choices)
                costs = self.search.costs(self.search.network(choices))
                examined.append(Examined(choices, finalist.generation, held_out, costs))
                progress(done, len(finalists), f"AP {held_out.metrics.ap:.3f}")
        return examined

    def _timed(self, examined: Sequence[Examined]) -> list[Examined]:
        assert self.stopwatch is not None
        networks = [self.search.network(network.choices) for network in examined]
        with self.stage("measure") as progress:
            latencies = self.stopwatch.settled(networks, progress=progress)
        return [
            replace(network, costs={**network.costs, "measured_ms": measured_ms})
            for network, measured_ms in zip(examined, latencies, strict=True)
        ]
