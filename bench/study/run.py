"""Which steps does a study have, and what does each read and write?

Whatever is measured is measured while nothing trains: networks are chosen before, latencies taken
after the trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapt.artifacts import make_folder
from adapt.errors import AdaptError
from adapt.lock import ELSEWHERE, alone
from bench.pipeline.target import Target
from bench.study.choice import Chooser
from bench.study.chosen import Chosen, Networks
from bench.study.division import divided_anew
from bench.study.execution import Execution
from bench.study.latency import Latencies, measure_latencies
from bench.study.preparation import Preparation, prepare
from bench.study.result import StudyResult, collected
from bench.study.spec import JOINT, Arm, Study
from bench.study.trial import Trial, run_trial
from bench.study.verdict import compare_paired
from search.recipe.recipe import Recipe
from search.train.pool import run_jobs


@dataclass(frozen=True)
class StudyRun:
    """A study of a recipe.

    Attributes:
        study: Arms, seeds and budget.
        recipe: What all arms start from.
        out: Folder of the results; a study that was stopped continues in it.
        how: How it is carried out.
    """

    study: Study
    recipe: Recipe
    out: Path
    how: Execution = field(default_factory=Execution)

    def execute(self) -> StudyResult:
        """Take all steps; those that are done already are not repeated.

        Raises:
            AdaptError: If the device of the recipe is not here, data or weights are missing, the
                folder holds another study, no network meets the budget, or a training fails.
        """
        make_folder(self.out)
        part = self.how.shard
        name = f".lock-{part.number}of{part.count}" if part.count > 1 else ".lock"
        with alone(self.out / name, ELSEWHERE):
            return self._execute()

    def _execute(self) -> StudyResult:
        if not self.seeds:
            raise AdaptError(
                f"part {self.how.shard.number} of {self.how.shard.count} has none of the "
                f"{self.study.seeds} seeds; divide them among {self.study.seeds} at most"
            )
        for arm in self.study.arms:
            recipe = self.study.recipe_of(arm, self.recipe, 0)
            if arm.network in JOINT:
                recipe.check_joint()
        if why_not := Target(self._base).why_not_here():
            raise AdaptError(f"a study measures and evaluates deployed detectors: {why_not}")
        self._teach()
        chosen = Chooser(
            self.study, self._base, self.out, self.how, self.seeds, self.trial, self.divided
        ).all()
        arms, dropped = list(self.study.arms), dict[str, int]()
        for seeds in self._turns():
            self.train([self._trial(arm, seed, chosen) for seed in seeds for arm in arms])
            done = self.seeds[: self.seeds.index(seeds[-1]) + 1]
            for arm in self._to_drop(arms, done, chosen):
                arms.remove(arm)
                dropped[arm.label] = len(done)
        trials = [self._trial(arm, seed, chosen) for arm in self.study.arms for seed in self.seeds]
        latencies = self._latencies(trials)
        chosen = {place: self._with_teaching(*place, one) for place, one in chosen.items()}
        return collected(self.study, self.recipe, trials, chosen, latencies, dropped)

    @property
    def _base(self) -> Recipe:
        """The recipe that all arms share."""
        return self.recipe.changed(self.study.recipe, "the study")

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds that are done here."""
        return self.how.shard.of(self.study.all_seeds)

    def divided(self, arm: Arm, seed: int) -> Recipe:
        """Return the recipe of an arm's training, its images divided anew for the seed."""
        recipe = self.study.recipe_of(arm, self.recipe, seed)
        return divided_anew(recipe, self.out / "data" / f"seed{seed}", seed)

    def train(self, trials: Sequence[Trial]) -> None:
        """Train, deploy and evaluate what has no result yet."""
        left = [trial for trial in trials if trial.result() is None]
        if left:
            with self.how.display(f"train {len(left)} of {len(trials)}") as progress:
                run_jobs(left, run_trial, self.how.at_once, progress, self.how.warn)

    def trial(self, arm: Arm, seed: int, network: Chosen) -> Trial:
        """Return the training of an arm's network."""
        changes = network.sized.changes()
        recipe = self.divided(arm, seed).changed(changes, f"arm {arm.label!r}")
        job, folder = self._teaching(arm, seed), self.out / "trials"
        teacher = job.teacher if job else None
        return Trial(arm.label, seed, recipe, network.sized.architecture, folder, teacher)

    def _teaching(self, arm: Arm, seed: int) -> Preparation | None:
        """Return the training of an arm's teacher, if it has one; equal arms share it."""
        recipe = self.divided(arm, seed)
        if not recipe.finetune.teacher_weight:
            return None
        job = Preparation(f"teacher seed{seed}", "teacher", recipe, self.out, None)
        return replace(job, folder=self.out / "searches" / f"teacher-seed{seed}-{job.key()}")

    def _teach(self) -> None:
        """Train the teachers of all arms and seeds."""
        jobs = [self._teaching(arm, seed) for seed in self.seeds for arm in self.study.arms]
        left = {job.folder: job for job in jobs if job and job.seconds() is None}
        if left:
            with self.how.display(f"teach {len(left)}") as progress:
                run_jobs(list(left.values()), prepare, self.how.at_once, progress, self.how.warn)

    def _with_teaching(self, label: str, seed: int, network: Chosen) -> Chosen:
        """Return what was chosen for an arm; the seconds of its teacher count as its own."""
        (arm,) = (arm for arm in self.study.arms if arm.label == label)
        job = self._teaching(arm, seed)
        return (
            replace(network, seconds=network.seconds + (job.seconds() or 0.0)) if job else network
        )

    def _trial(self, arm: Arm, seed: int, chosen: Networks) -> Trial:
        return self.trial(arm, seed, chosen[arm.label, seed])

    def _turns(self) -> list[Sequence[int]]:
        """Return the seeds that are trained together; between turns, arms may be dropped."""
        first = self.study.drop_after
        if not first or len(self.seeds) < self.study.seeds:
            return [self.seeds]
        return [self.seeds[:first], *([seed] for seed in self.seeds[first:])]

    def _to_drop(self, arms: Sequence[Arm], seeds: Sequence[int], chosen: Networks) -> list[Arm]:
        """Return the arms that are dropped after these seeds, by the rule of the study."""
        if len(seeds) >= self.study.seeds or len(self.seeds) < self.study.seeds:
            return []
        ap: dict[str, list[float]] = {}
        for arm in arms:
            results = [self._trial(arm, seed, chosen).result() for seed in seeds]
            ap[arm.label] = [100 * result["metrics"]["ap"] for result in results if result]
        reference, *others = arms
        return [
            arm
            for arm in others
            if compare_paired(arm.label, reference.label, ap[arm.label], ap[reference.label]).high
            < -self.study.drop_below
        ]

    def _latencies(self, trials: Sequence[Trial]) -> Latencies:
        here = [
            trial for trial in trials if trial.result() is not None and trial.artifact.is_file()
        ]
        with self.how.display("latency") as progress:
            return measure_latencies(here, self.out / "latency.json", progress)
