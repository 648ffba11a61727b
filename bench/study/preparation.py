"""What is trained before an arm's network is chosen? (a search, a teacher, or some candidates)"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import NonNegativeFloat

from adapt.artifacts import (
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.errors import AdaptError
from adapt.progress import Progress, ignore, part_of, silent
from bench.study.trial import Trial
from search.estimate import estimate_run
from search.recipe.recipe import Recipe
from search.recipe.search_cost import search_cost
from search.score.run import run_score
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

CANDIDATES = 4  # of a race of random networks
TEACHING = ("scores", "teacher")  # rules that train the source


@dataclass(frozen=True)
class Preparation:
    """What one seed of an arm trains before a network is chosen.

    Attributes:
        name: Name in messages, and of its folder.
        rule: ``softmax``, ``scores``, or ``teacher``, which is the source alone, trained for
            ``finetune.shared_epochs`` as in a run.
        recipe: How and on which images.
        folder: Folder of its files.
        costs: Cost table, of a search for latency.
    """

    name: str
    rule: str
    recipe: Recipe
    folder: Path
    costs: Path | None

    @property
    def supernet(self) -> Path:
        """The finished search."""
        return self.folder / "supernet.pt"

    @property
    def scores(self) -> Path:
        """What choices cost in loss, of a teacher."""
        return self.folder / "scores.json"

    @property
    def teacher(self) -> Path:
        """The trained source; that of another recipe has another name."""
        return self.folder / f"teacher-{self.key()}.safetensors"

    @property
    def teaching(self) -> Recipe:
        """How the source is trained: without a teacher of its own."""
        changes = {"teacher_weight": 0, "epochs": source_epochs(self.recipe)}
        return self.recipe.changed({"finetune": changes}, "teacher")

    def key(self) -> str:
        """Return the hash of everything that it depends on."""
        train = self.recipe.split(self.recipe.data.train)
        if self.rule in TEACHING:
            val = self.recipe.split(self.recipe.data.val)
            images = [split.sha256 for split in (train, val)]
            of = self.recipe.space.load() if self.rule == "scores" else self.recipe.source
            return content_hash([self.teaching.finetune_hash, of.hash, *images])
        cost = search_cost(self.recipe, train, self.costs)
        return content_hash([self.recipe.search_hash, cost.provenance])

    def seconds(self) -> float | None:
        """Return how long the process took that ended it, or None if it is not done.

        Raises:
            AdaptError: If it was a search of another recipe, data set or cost table.
        """
        record = self.folder / "search.json"
        if not record.is_file():
            return None
        content = check_header(read_json(record, "search record"), "study-search", record)
        if content.get("key") != self.key():
            raise AdaptError(
                f"{record} is of another recipe, data set or cost table; choose another folder "
                "with --out, or delete it"
            )
        with parsing("search record", record, "delete it"):
            return typed(NonNegativeFloat, content["seconds"])


def prepare(
    job: Preparation, progress: Progress = silent, warn: Callable[[str], object] = ignore
) -> None:
    """Search, score or train a teacher, and record the seconds; a stopped training continues.

    Raises:
        AdaptError: If the cost table does not fit, or the loss diverges.
    """
    start = time.perf_counter()
    session = Session(progress=progress, warn=warn)
    if job.rule in TEACHING:
        parts = 2 if job.rule == "scores" else 1
        _teach(job, replace(session, progress=part_of(progress, 0, parts)))
    if job.rule == "softmax":
        _search(job, session)
    elif job.rule == "scores":
        run_score(job.recipe, job.teacher, job.scores, progress=part_of(progress, 1, 2))
    seconds = round(time.perf_counter() - start, 1)
    content = header("study-search", key=job.key(), seconds=seconds)
    write_json(job.folder / "search.json", content)


def _search(job: Preparation, session: Session) -> None:
    recipe = job.recipe
    train = recipe.split(recipe.data.train)
    cost = search_cost(recipe, train, job.costs)
    session = replace(session, provenance=cost.provenance)
    run_search(recipe, train, cost.model, job.folder, session)


def _teach(job: Preparation, session: Session) -> None:
    """Train the source as all trials are trained, for as many epochs as in a run."""
    if not job.teacher.is_file():
        train = job.recipe.split(job.recipe.data.train)
        run_finetune(job.teaching, job.recipe.source, train, job.teacher, session)


def source_epochs(recipe: Recipe) -> int:
    """Return the epochs of the source that is scored: as in a run, but no more than a trial's."""
    training = recipe.finetune
    return min(training.shared_epochs or training.epochs, training.epochs)


def candidate_epochs(rule: str, recipe: Recipe) -> int:
    """Return the epochs of each random candidate: together they take what a search does.

    Args:
        rule: ``random-best-of-k``: they compute as much as the recipe's search.
            ``random-joint-best-of-k``: as many epochs as the source's training and the race of
            ``joint``.
        recipe: The recipe of the arm.
    """
    if rule == "random-joint-best-of-k":
        return max(1, round((source_epochs(recipe) + recipe.joint.raced_epochs) / CANDIDATES))
    train = recipe.split(recipe.data.train)
    estimate = estimate_run(recipe, len(train), len(train.class_names))
    searched = sum(step.steps * step.tflops for step in (estimate.weight, estimate.arch))
    epoch = estimate.finetune.steps * estimate.finetune.tflops / recipe.finetune.epochs
    return max(1, round(searched / CANDIDATES / epoch))


def candidate_trial(trial: Trial, number: int, epochs: int) -> Trial:
    """Return the training of a candidate, which is judged on the validation images."""
    recipe = trial.recipe.changed(
        {"finetune": {"epochs": epochs}, "data": {"test": trial.recipe.data.val}}, trial.arm
    )
    return replace(trial, arm=f"{trial.arm} candidate {number}", recipe=recipe)
