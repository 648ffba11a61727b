"""Which backbone, pyramid, heads and input does a run choose together for each budget?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapt.artifacts import content_hash
from adapt.progress import Progress, part_of
from bench.acceptance.meet import BudgetMeter
from bench.acceptance.scaling import Sized
from bench.costs.recipe_table import recipe_backend
from bench.joint.finalists import finalists, load_finalists, save_finalists
from bench.joint.race import Race, Racer, run_racer, run_races
from bench.latency.backend import conditions
from bench.pipeline.stages import Stages, Task
from search.derive.derive import draw_ledger
from search.derive.finished import FinishedSearch, SearchFiles
from search.derive.scores import Scores
from search.recipe.recipe import Recipe
from search.train.pool import run_jobs
from search.train.session import Session


@dataclass(frozen=True)
class JointChoice:
    """Derives the finalists of every setting, and lets them race.

    Attributes:
        recipe: The recipe.
        files: Scores, and the cost table of the recipe's own setting.
        folder: Where architectures are written.
        stages: The stages of the run; those before it are done.
        session: How trainings are carried out.
        start: Trained detector that all start from; the pretrained source if None.
        source_ms: Latency of the source, measured before.
        at_once: Trainings side by side, one thread each; 1 trains one after another, with all.
    """

    recipe: Recipe
    files: SearchFiles
    folder: Path
    stages: Stages
    session: Session
    start: Path | None
    source_ms: float
    at_once: int

    def paths(self, budgets_ms: Mapping[str, float]) -> dict[str, Path]:
        """Return the architecture file of every budget, by its name in files.

        Raises:
            AdaptError: If no network meets a budget, or a training fails.
        """
        measured = self._measure(budgets_ms)
        races = {of: self._race(of, path) for of, path in measured.items()}
        tasks = {
            # The name of what other choices do: a folder holds a network of one of them.
            self._task(
                "derive", of, [race.key(), self._inputs, budgets_ms[of]], _named("arch", of)
            ): of
            for of, race in races.items()
        }

        def work(left: Sequence[Task], progress: Progress) -> None:
            run_races([races[tasks[task]] for task in left], self._train(progress))
            with self.files.open() as scored:
                for task in left:
                    self._save(task.file, races[tasks[task]], measured[tasks[task]], scored)

        paths = self.stages.together("race", list(tasks), work)
        return dict(zip(races, paths, strict=True))

    def _measure(self, budgets_ms: Mapping[str, float]) -> dict[str, Path]:
        """Return the finalists of every budget."""
        tasks = {
            self._task("finalists", of, [self._inputs, ms], _named("finalists", of)): ms
            for of, ms in budgets_ms.items()
        }

        def work(left: Sequence[Task], progress: Progress) -> None:
            with (
                self.files.open() as scored,
                BudgetMeter(
                    self.recipe, len(scored.class_names), source_ms=self.source_ms
                ) as meter,
            ):
                for task in left:
                    self._find(task.file, tasks[task], scored, meter, progress)

        paths = self.stages.together("finalists", list(tasks), work)
        return dict(zip(budgets_ms, paths, strict=True))

    def _find(
        self,
        path: Path,
        budget_ms: float,
        scored: FinishedSearch,
        meter: BudgetMeter,
        progress: Progress,
    ) -> None:
        assert isinstance(scored.found, Scores)
        model, settings = scored.cost_model("ms"), self.recipe.settings
        derive = scored.found.deriver
        met = finalists(meter, derive, model, scored.space, settings, budget_ms, progress)
        save_finalists(met, path, budget_ms=budget_ms)

    def _race(self, of: str, measured: Path) -> Race:
        sized: tuple[Sized, ...] = tuple(met.sized for met in load_finalists(measured)[0])
        name = f"race {of}".strip()
        folder, limit = self.folder / _named("race", of), self.session.limit_steps
        return Race(name, self.recipe, sized, folder, self.start, limit)

    def _train(self, progress: Progress) -> Callable[[Sequence[Racer]], None]:
        def train(racers: Sequence[Racer]) -> None:
            if self.at_once > 1:
                run_jobs(racers, run_racer, self.at_once, progress, self.session.warn)
                return
            for number, racer in enumerate(racers):
                run_racer(racer, part_of(progress, number, len(racers)), self.session.warn)

        return train

    def _save(self, path: Path, race: Race, measured: Path, scored: FinishedSearch) -> None:
        """Write the winner, how the others did, and what its blocks save in the own setting."""
        found, content = load_finalists(measured)
        won = found[race.winner]
        if doubt := race.doubt:
            self.session.warn(doubt)
        why = scored.explained(won.sized.architecture)
        rows = [
            {
                "setting": str(met.sized.setting),
                "network": str(met.sized.architecture),
                "measured_ms": met.measured_ms,
            }
            for met in found
        ]
        won.sized.architecture.save(
            path,
            rule=f"race of {len(found)} settings; {won.sized.setting}; {won.how}",
            setting=won.sized.changes(),
            costs={"measured_ms": won.measured_ms},
            budget_ms=content["budget_ms"],
            finalists=rows,
            race=race.results(),
            **why,
        )
        draw_ledger(why, path)

    def _task(self, stage: str, of: str, inputs: Sequence[object], file: str) -> Task:
        path = self.folder / f"{file}.json"
        return Task(f"{stage} {of}".strip(), content_hash(inputs), path, self.folder)

    @property
    def _inputs(self) -> list[object]:
        """What the finalists depend on, but for the budget."""
        here = conditions(recipe_backend(self.recipe), self.recipe.input.fixed())
        settings = [setting.to_dict() for setting in self.recipe.settings]
        scored = self.stages.made_from["score"]
        classes, costs = self.recipe.num_classes(), self.files.costs_identity
        return [scored, asdict(here), classes, costs, settings]


def told_race(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how the finalists of an architecture file's race did, the winner first.

    Args:
        content: Of the file; without a race there is nothing to tell.
    """
    reached: dict[int, list[float]] = {}
    for of_round in content.get("race", ()):
        for one in of_round:
            reached.setdefault(one["finalist"], []).append(one["val_ap"])
    ranked = sorted(reached, key=lambda number: (-len(reached[number]), -reached[number][-1]))
    finalists = content.get("finalists", ())
    return tuple(
        f"{finalists[number]['setting']}, {finalists[number]['measured_ms']:.4g} ms: AP "
        f"{', then '.join(f'{ap:.1f}' for ap in reached[number])}"
        for number in ranked
    )


def _named(name: str, of: str) -> str:
    return f"{name}-{of}" if of else name
