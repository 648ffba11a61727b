"""How are the networks of a run trained? (one after another, or several side by side)"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapt.architecture import Architecture
from adapt.artifacts import content_hash, file_hash
from adapt.progress import Progress
from bench.pipeline.choice import Network
from bench.pipeline.pool import run_jobs
from bench.pipeline.stages import Stages, Task
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune
from search.train.session import Session
from search.train.teacher import TrainedFiles
from search.train.validation import validation_split


@dataclass(frozen=True)
class FinetuneJob:
    """The fine-tuning of one network, which another process can do.

    Attributes:
        name: Name of the network.
        recipe: How it is trained.
        architecture: Its backbone.
        path: The detector file to write.
        limit_steps: As of the session.
        start: Trained detector to start from; the pretrained source if None.
    """

    name: str
    recipe: Recipe
    architecture: Architecture
    path: Path
    limit_steps: int | None
    start: Path | None = None

    @property
    def trained(self) -> TrainedFiles:
        """What it starts from, which is its teacher too if the recipe asks for one."""
        taught = self.recipe.finetune.teacher_weight > 0
        return TrainedFiles(self.start, self.start if taught else None)

    def key(self) -> str:
        """Return the hash of everything that the detector depends on."""
        recipe, train = self.recipe, self.recipe.split(self.recipe.data.train)
        val = validation_split(recipe, train)
        splits = [file_hash(val.annotations)] if val else []
        data = file_hash(train.annotations)
        content = [recipe.finetune_hash, self.architecture.hash, data, self.limit_steps, *splits]
        return content_hash([*content, file_hash(self.start)] if self.start else content)


def finetune(job: FinetuneJob, progress: Progress, warn: Callable[[str], object]) -> None:
    """Train, in this process; a stopped training continues.

    Raises:
        AdaptError: If weights are missing or the loss diverges.
    """
    train = job.recipe.split(job.recipe.data.train)
    provenance = {"annotations_sha256": file_hash(train.annotations)}
    session = Session(
        progress=progress, warn=warn, limit_steps=job.limit_steps, provenance=provenance
    )
    run_finetune(job.recipe, job.architecture, train, job.path, session, job.trained)


def finetune_all(
    networks: Sequence[Network],
    recipe: Recipe,
    start: Path | None,
    stages: Stages,
    session: Session,
    at_once: int,
) -> dict[str, Path]:
    """Return the detector file of every network, by its name.

    Args:
        networks: What to train; each is a stage.
        recipe: How.
        start: Trained detector that all start from; the pretrained source if None.
        stages: The stages of the run.
        session: How it is carried out.
        at_once: Trainings side by side, one thread each; 1 trains one after another, with all.

    Raises:
        AdaptError: If weights are missing or a loss diverges.
    """
    tasks, jobs, limit = [], dict[str, FinetuneJob](), session.limit_steps
    for network in networks:
        path = network.folder / f"{network.name}.safetensors"
        job = FinetuneJob(network.name, recipe, network.architecture, path, limit, start)
        tasks.append(Task(f"finetune {network.name}", job.key(), path, network.folder))
        jobs[tasks[-1].name] = job

    def work(left: Sequence[Task], progress: Progress) -> None:
        run_jobs([jobs[task.name] for task in left], finetune, at_once, progress, session.warn)

    if at_once > 1:
        files = stages.together("finetune", tasks, work)
    else:
        files = [
            stages.once(task, partial(finetune, jobs[task.name], warn=session.warn))
            for task in tasks
        ]
    return {network.name: file for network, file in zip(networks, files, strict=True)}


def shared_start(recipe: Recipe, source: Network, stages: Stages, session: Session) -> Path | None:
    """Train the source for the epochs that all networks share; None if there are none.

    Raises:
        AdaptError: If weights are missing or the loss diverges.
    """
    epochs = recipe.finetune.shared_epochs
    if not epochs:
        return None
    recipe = recipe.changed(
        {"finetune": {"epochs": epochs, "shared_epochs": 0, "teacher_weight": 0}}, "shared_epochs"
    )
    path = source.folder / "start.safetensors"
    job = FinetuneJob("start", recipe, source.architecture, path, session.limit_steps)
    task = Task("finetune start", job.key(), path, source.folder)
    return stages.once(task, partial(finetune, job, warn=session.warn))
