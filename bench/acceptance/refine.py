"""Which of the best networks of a search are best on held-out images, and how fast are they?"""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.architecture import Choices
from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.progress import Stage, silent_stage
from bench.acceptance.refine_report import SLACK, Tried, write_front
from bench.acceptance.stopwatch import Stopwatch
from bench.acceptance.verify import approached
from bench.costs.certify import WHOLE_PROTOCOL
from bench.costs.of_recipe import recipe_target
from bench.latency.backend import Target
from bench.latency.timing import Protocol
from search.derive.derive import FinishedSearch, open_search
from search.derive.evolve import Individual, cost_of, evolve
from search.derive.exact import Derived
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
    searched: Path,
    out: Path,
    asked: Refinement,
    *,
    costs: Path | None = None,
    uncertified: bool = False,
    data: Path | None = None,
    target: Target | None = None,
    protocol: Protocol = WHOLE_PROTOCOL,
    stage: Stage = silent_stage,
) -> dict[str, Any]:
    """Re-rank the best networks of a search by loss and AP on held-out images.

    Every network inherits the supernet's weights, and its BatchNorms are recalibrated on training
    images. Latencies are measured where a cost table is given.

    Args:
        searched: ``supernet.pt``.
        out: Folder for ``arch.json`` (the best network), ``front.json``, ``front.png`` and one
            architecture file per network.
        asked: How many networks.
        costs: Cost table of this machine.
        uncertified: Whether a table without a certificate will do.
        data: Folder of the data set; the recipe's if None.
        target: Where to measure; what the recipe's device describes if None.
        protocol: How much to measure of each network.
        stage: Opens the progress display of a stage.

    Returns:
        The best network, all rows of ``front.json``, the split that networks were chosen on and the
        one that the recipe's benchmark reports.

    Raises:
        AdaptError: If data set, table or budget do not fit, or no network is within the budget.
    """
    make_folder(out)  # before minutes of work, not after
    with open_search(searched, costs, uncertified=uncertified) as search:
        recipe = search.recipe.with_data(data)
        search = replace(search, recipe=recipe)
        examiner = Examiner(search, recipe.split(recipe.data.train), recipe.split(recipe.data.val))
        watch = None
        if search.table is not None:
            watch = Stopwatch(search, target or recipe_target(recipe, costs), protocol)
        with watch or nullcontext():
            limit, fits = _limit(search, asked, watch, stage)
            first = candidates(search, asked, limit, fits)
            bred = _bred(search, asked, first, limit, examiner, stage)
            tried = _examined(search, _finalists(bred, asked), examiner, stage)
            if watch is not None:
                tried = _timed(search, tried, watch, stage)
        evolution = [_told(search, one) for one in bred] if asked.generations else []
        splits = {"chosen_on": recipe.data.val, "benchmark": recipe.data.benchmark}
        content = {"asked": asdict(asked), "evolution": evolution, **splits}
        return {**write_front(search, tried, asked.budget, out, **content), **splits}


def _told(search: FinishedSearch, one: Individual) -> dict[str, Any]:
    network = str(search.network(one.choices))
    return {"generation": one.generation, "loss": one.loss, "network": network}


def _limit(
    search: FinishedSearch, asked: Refinement, watch: Stopwatch | None, stage: Stage
) -> tuple[float | None, list[Derived]]:
    """Return what a network may cost by the cost model, and the network known to fit."""
    if asked.budget is None:
        return None, []
    if asked.budget.unit == "madds":
        return asked.budget.amount, [search.within(asked.budget)]
    search.deriver("ms")  # tells what is missing
    assert watch is not None
    # Measured first: a table that is wrong by 4 % would let networks compete of which none fits.
    with stage("verify") as progress:
        approach = approached(search, asked.budget, watch, progress=progress)
    assert approach.best is not None
    return max(approach.best.network.cost, approach.aimed_ms()), [approach.best.network]


def _bred(
    search: FinishedSearch,
    asked: Refinement,
    found: list[Derived],
    limit: float | None,
    examiner: Examiner,
    stage: Stage,
) -> list[Individual]:
    """Return the front's networks, and everybody bred from them, the best first."""
    first = [Choices(one.ops, one.widths) for one in found]
    if not asked.generations:
        return [Individual(choices, 0) for choices in first]
    model = search.cost_model(_unit(search, asked))
    most = limit or max(one.cost for one in found)
    total = len(first) * (1 + asked.generations)
    with stage("evolve") as progress:
        done = 0

        def loss(choices: Choices) -> float:
            nonlocal done
            value, done = examiner.loss(choices), done + 1
            progress(done, total, f"loss {value:.3f}")
            return value

        return evolve(
            search.supernet.space,
            [Individual(choices, 0, loss(choices)) for choices in first],
            asked.generations,
            loss=loss,
            fits=lambda choices: cost_of(model, choices) <= most * (1 + SLACK),
            seed=search.recipe.seed,
        )


def _finalists(bred: list[Individual], asked: Refinement) -> list[Individual]:
    """Return the front's networks, and those of the best that were bred."""
    front = [one for one in bred if one.generation == 0]
    return front + [one for one in bred[: asked.keep] if one.generation > 0]


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
    return list({(one.ops, one.widths): one for one in found}.values())


def _unit(search: FinishedSearch, asked: Refinement) -> Unit:
    return asked.budget.unit if asked.budget else "ms" if search.table else "madds"


def _examined(
    search: FinishedSearch, people: list[Individual], examiner: Examiner, stage: Stage
) -> list[Tried]:
    tried = []
    with stage("evaluate") as progress:
        for done, one in enumerate(people, start=1):
            held_out = examiner.examine(one.choices)
            costs = search.costs(search.network(one.choices))
            tried.append(Tried(one.choices, one.generation, held_out, costs))
            progress(done, len(people), f"AP {held_out.metrics.ap:.3f}")
    return tried


def _timed(
    search: FinishedSearch, tried: list[Tried], watch: Stopwatch, stage: Stage
) -> list[Tried]:
    with stage("measure") as progress:
        found = watch.settled([search.network(one.choices) for one in tried], progress=progress)
    return [
        replace(one, costs={**one.costs, "measured_ms": measured_ms})
        for one, measured_ms in zip(tried, found, strict=True)
    ]
