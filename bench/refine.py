"""Which of the best networks of a search are best on held-out images, and how fast are they?"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.artifacts import header, make_folder, write_json
from adapt.errors import AdaptError
from adapt.inherit import Choices
from adapt.progress import Stage, silent_stage
from bench.certify import WHOLE_PROTOCOL
from bench.recipe_profile import recipe_target
from bench.refine_plot import plot_front
from bench.stopwatch import Stopwatch
from bench.target import Target
from bench.timing import Protocol
from search.budget import Derived
from search.costs import Budget
from search.derive import FinishedSearch, open_search
from search.evolve import Individual, cost_of, evolve
from search.refine import Examiner, HeldOut
from search.target import Unit

SLACK = 1e-9  # relative; the budget's network may be dearer by rounding


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
        The best network, and all rows of ``front.json``.

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
        bred = _bred(search, asked, examiner, stage)
        tried = _examined(search, _finalists(bred, asked), examiner, stage)
        if watch is not None:
            tried = _timed(search, tried, watch, stage)
        return _written(search, tried, bred, asked, out)


def _bred(
    search: FinishedSearch, asked: Refinement, examiner: Examiner, stage: Stage
) -> list[Individual]:
    """Return the front's networks, and everybody bred from them, the best first."""
    unit: Unit = asked.budget.unit if asked.budget else "ms" if search.table else "madds"
    found = _candidates(search, asked, unit)
    first = [Choices(one.ops, one.widths) for one in found]
    if not asked.generations:
        return [Individual(choices, 0) for choices in first]
    model = search.cost_model(unit)
    limit = asked.budget.in_sums(search.table) if asked.budget else max(n.cost for n in found)
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
            fits=lambda choices: cost_of(model, choices) <= limit * (1 + SLACK),
            seed=search.recipe.seed,
        )


def _finalists(bred: list[Individual], asked: Refinement) -> list[Individual]:
    """Return the front's networks, and those of the best that were bred."""
    front = [one for one in bred if one.generation == 0]
    return front + [one for one in bred[: asked.keep] if one.generation > 0]


def _candidates(search: FinishedSearch, asked: Refinement, unit: Unit) -> list[Derived]:
    """Return the networks of highest probability of the front, within the budget."""
    deriver = search.deriver(unit)
    found = deriver.front(asked.front)
    if asked.budget:
        limit = asked.budget.in_sums(search.table)
        found = [deriver.best(limit), *(one for one in found if one.cost <= limit * (1 + SLACK))]
    distinct = {(one.ops, one.widths): one for one in found}.values()
    return sorted(distinct, key=lambda one: -one.score)[: asked.keep]


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
    with watch, stage("measure") as progress:
        found = watch.many([search.network(one.choices) for one in tried], progress=progress)
    return [
        replace(one, costs={**one.costs, "measured_ms": latency.min_ms})
        for one, latency in zip(tried, found, strict=True)
    ]


def is_optimal(one: Tried, everybody: list[Tried]) -> bool:
    """Return whether nobody is better and no dearer, or cheaper and as good."""
    rank, cost = one.held_out.rank, one.cost
    return not any(
        other.cost <= cost
        and other.held_out.rank >= rank
        and (other.cost, other.held_out.rank) != (cost, rank)
        for other in everybody
    )


def _written(
    search: FinishedSearch,
    tried: list[Tried],
    bred: list[Individual],
    asked: Refinement,
    out: Path,
) -> dict[str, Any]:
    tried = sorted(tried, key=lambda one: one.cost)
    limit = asked.budget.amount if asked.budget else float("inf")
    # Measured costs may exceed a budget that the table's kept.
    fitting = [one for one in tried if one.cost <= limit * (1 + SLACK) or _unmeasured(one, asked)]
    best = max(fitting, key=lambda one: one.held_out.rank, default=None)
    rows = []
    for number, one in enumerate(tried, start=1):
        path, architecture = out / f"arch-{number:02d}.json", search.network(one.choices)
        row = _row(one) | {"pareto": is_optimal(one, tried), "best": one is best}
        _save(architecture, path, search, one)
        rows.append({"architecture": str(path), **row})
    content = {"asked": asdict(asked), "search": search.identity, "networks": rows}
    if asked.generations:
        content["evolution"] = [
            {
                "generation": one.generation,
                "loss": one.loss,
                "network": str(search.network(one.choices)),
            }
            for one in bred
        ]
    write_json(out / "front.json", header("refined-front", **content))
    plot_front(rows, out / "front.png", asked.budget)
    if best is None:
        raise AdaptError(
            f"no network was measured within {asked.budget}, the fastest takes "
            f"{tried[0].cost:.4g} ms (all are in {out / 'front.json'}); ask for a lower budget, or "
            "use --verify"
        )
    _save(search.network(best.choices), out / "arch.json", search, best)
    network = str(search.network(best.choices))
    shown = {"architecture": str(out / "arch.json"), "network": network, **_row(best)}
    return {**shown, "plot": str(out / "front.png"), "networks": rows}


def _unmeasured(one: Tried, asked: Refinement) -> bool:
    """Return whether a budget is not in the unit that costs are compared in."""
    measured = "measured_ms" in one.costs
    return asked.budget is not None and measured != (asked.budget.unit == "ms")


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
