"""Which networks of a front are best on held-out images? (`derive --refine`, `--evolve`)"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.architecture import Choices
from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Stage, silent_stage
from bench.acceptance.front import SLACK, Tried, write_front
from bench.acceptance.stopwatch import Stopwatch, as_certified
from bench.acceptance.verify import approached
from bench.latency.workers import Measurement
from search.derive.evolve import Individual, cost_of, evolve
from search.derive.exact import Derived
from search.derive.finished import FinishedSearch, SearchFiles
from search.derive.held_out import Examiner
from search.recipe.budget import Budget, Unit


@dataclass(frozen=True)
class Refinement:
    """What is asked for.

    Attributes:
        front: Budgets of the front.
        keep: Networks of highest probability that are tried.
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
    asked: Refinement,
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
        asked: How many networks.
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
        watch = None
        if search.table is not None:
            watch = Stopwatch(search, how or as_certified(recipe, files.costs))
        with watch or nullcontext():
            bred, tried = _Contest(search, asked, examiner, watch, stage).held()
        evolution = [_described(search, one) for one in bred] if asked.generations else []
        splits = {"chosen_on": recipe.data.val, "benchmark": recipe.data.benchmark}
        content = {"asked": asdict(asked), "evolution": evolution, **splits}
        return {**write_front(search, tried, asked.budget, out, **content), **splits}


def _described(search: FinishedSearch, one: Individual) -> dict[str, Any]:
    network = str(search.network(one.choices))
    return {"generation": one.generation, "loss": one.loss, "network": network}


def candidates(
    search: FinishedSearch, asked: Refinement, limit: float | None, fits: list[Derived]
) -> list[Derived]:
    """Return the front's networks of highest probability within a budget, and those that fit it.

    Args:
        search: A finished search.
        asked: How many networks.
        limit: What one may cost by the cost model; None for the whole front.
        fits: Networks that are known to fit, however probable.
    """
    deriver = search.deriver(_unit(search, asked))
    found = deriver.front(asked.front)
    if limit:
        found = [deriver.best(limit), *(one for one in found if one.cost <= limit * (1 + SLACK))]
    probable = sorted(_distinct(found), key=lambda one: -one.score)[: asked.keep]
    return _distinct([*probable, *fits])


def _distinct(found: list[Derived]) -> list[Derived]:
    return list({one.choices: one for one in found}.values())


def _unit(search: FinishedSearch, asked: Refinement) -> Unit:
    return asked.budget.unit if asked.budget else "ms" if search.table else "madds"


@dataclass(frozen=True)
class _Contest:
    """Networks of a front, and what is bred from them, against each other."""

    search: FinishedSearch
    asked: Refinement
    examiner: Examiner
    watch: Stopwatch | None
    stage: Stage

    def held(self) -> tuple[list[Individual], list[Tried]]:
        """Return everybody that was bred, the best first, and all finalists with AP and costs."""
        limit, fits = self._limit()
        bred = self._bred(candidates(self.search, self.asked, limit, fits), limit)
        tried = self._examined(self._finalists(bred))
        return bred, self._timed(tried) if self.watch else tried

    def _limit(self) -> tuple[float | None, list[Derived]]:
        """Return what a network may cost by the cost model, and the network known to fit."""
        budget = self.asked.budget
        if budget is None:
            return None, []
        if budget.unit == "madds":
            return budget.amount, [self.search.within(budget)]
        self.search.deriver("ms")  # tells what is missing
        assert self.watch is not None
        # Measured first: a table that is wrong by 4 % would let networks compete of which none
        # fits.
        with self.stage("verify") as progress:
            approach = approached(self.search, budget, self.watch, progress=progress)
        assert approach.best is not None
        return max(approach.best.network.cost, approach.aimed_ms()), [approach.best.network]

    def _bred(self, front: list[Derived], limit: float | None) -> list[Individual]:
        """Return the front's networks, and everybody bred from them, the best first."""
        if not self.asked.generations:
            return [Individual(one.choices, 0) for one in front]
        model = self.search.cost_model(_unit(self.search, self.asked))
        most = limit or max(one.cost for one in front)
        total = len(front) * (1 + self.asked.generations)
        with self.stage("evolve") as progress:
            done = 0

            def loss(choices: Choices) -> float:
                nonlocal done
                value, done = self.examiner.loss(choices), done + 1
                progress(done, total, f"loss {value:.3f}")
                return value

            return evolve(
                self.search.supernet.space,
                [Individual(one.choices, 0, loss(one.choices)) for one in front],
                self.asked.generations,
                loss=loss,
                fits=lambda choices: cost_of(model, choices) <= most * (1 + SLACK),
                seed=self.search.recipe.seed,
            )

    def _finalists(self, bred: list[Individual]) -> list[Individual]:
        """Return the front's networks, and those of the best that were bred."""
        front = [one for one in bred if one.generation == 0]
        return front + [one for one in bred[: self.asked.keep] if one.generation > 0]

    def _examined(self, finalists: list[Individual]) -> list[Tried]:
        tried = []
        with self.stage("evaluate") as progress:
            for done, one in enumerate(finalists, start=1):
                held_out = self.examiner.examine(one.choices)
                costs = self.search.costs(self.search.network(one.choices))
                tried.append(Tried(one.choices, one.generation, held_out, costs))
                progress(done, len(finalists), f"AP {held_out.metrics.ap:.3f}")
        return tried

    def _timed(self, tried: list[Tried]) -> list[Tried]:
        assert self.watch is not None
        networks = [self.search.network(one.choices) for one in tried]
        with self.stage("measure") as progress:
            latencies = self.watch.settled(networks, progress=progress)
        return [
            replace(one, costs={**one.costs, "measured_ms": measured_ms})
            for one, measured_ms in zip(tried, latencies, strict=True)
        ]
