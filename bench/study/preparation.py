"""What is trained before an arm's network is chosen? (a search, or each of some candidates)"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapt.artifacts import check_header, content_hash, header, read_json, write_json
from adapt.errors import AdaptError
from adapt.progress import Progress, ignore, silent
from bench.study.trial import Trial
from search.estimate import estimate_run
from search.recipe.recipe import Recipe
from search.recipe.search_cost import search_cost
from search.supernet.run import run_search
from search.train.session import Session

CANDIDATES = 4  # of random-best-of-k


@dataclass(frozen=True)
class SearchJob:
    """The search of one seed.

    Attributes:
        name: Name in messages, and of its folder.
        recipe: How and on which images.
        folder: Folder of its files.
        costs: Cost table, of a search for latency.
    """

    name: str
    recipe: Recipe
    folder: Path
    costs: Path | None

    @property
    def supernet(self) -> Path:
        """The finished search."""
        return self.folder / "supernet.pt"

    def key(self) -> str:
        """Return the hash of everything that the search depends on."""
        train = self.recipe.split(self.recipe.data.train)
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
        if content["key"] != self.key():
            raise AdaptError(
                f"{record} is of another recipe, data set or cost table; choose another folder "
                "with --out, or delete it"
            )
        return float(content["seconds"])


def search(
    job: SearchJob, progress: Progress = silent, warn: Callable[[str], object] = ignore
) -> None:
    """Search, and record the seconds; a stopped search continues.

    Raises:
        AdaptError: If the cost table does not fit, or the loss diverges.
    """
    start, recipe = time.perf_counter(), job.recipe
    train = recipe.split(recipe.data.train)
    cost = search_cost(recipe, train, job.costs)
    session = Session(progress=progress, warn=warn, provenance=cost.provenance)
    run_search(recipe, train, cost.model, job.folder, session)
    seconds = round(time.perf_counter() - start, 1)
    content = header("study-search", key=job.key(), seconds=seconds)
    write_json(job.folder / "search.json", content)


def candidate_epochs(recipe: Recipe) -> int:
    """Return the epochs of each candidate's training: together they compute what a search does."""
    train = recipe.split(recipe.data.train)
    estimate = estimate_run(recipe, len(train), len(train.class_names))
    searched = sum(step.steps * step.tflops for step in (estimate.weight, estimate.arch))
    epoch = estimate.finetune.steps * estimate.finetune.tflops / recipe.finetune.epochs
    return max(1, round(searched / CANDIDATES / epoch))


def candidate_trial(trial: Trial, number: int) -> Trial:
    """Return the short training of a candidate, which is judged on the validation images."""
    recipe = trial.recipe.changed(
        {
            "finetune": {"epochs": candidate_epochs(trial.recipe)},
            "data": {"test": trial.recipe.data.val},
        },
        trial.arm,
    )
    name = f"{trial.arm} candidate {number}"
    return Trial(name, trial.seed, recipe, trial.architecture, trial.folder)
