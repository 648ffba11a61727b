"""How are the networks of a run trained? (one after another, or several side by side)"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adapt.progress import Progress
from bench.pipeline.choice import Network
from bench.pipeline.stages import Stages, Task
from search.recipe.recipe import Recipe
from search.train.job import FinetuneJob, finetune
from search.train.pool import run_jobs
from search.train.session import Session


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
        of_network = recipe.changed(network.setting.changes(), network.name)
        job = FinetuneJob(network.name, of_network, network.architecture, path, limit, start)
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
