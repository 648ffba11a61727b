"""How is one network fine-tuned in a process of its own? (a job of the pool)"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapt.architecture import Architecture
from adapt.artifacts import content_hash, file_hash
from adapt.data.layout import annotation_hash, find_split
from adapt.progress import Progress
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune
from search.train.session import Session
from search.train.teacher import TrainedFiles


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
        measure_lost: As of the session.
    """

    name: str
    recipe: Recipe
    architecture: Architecture
    path: Path
    limit_steps: int | None
    start: Path | None = None
    measure_lost: bool = True

    @property
    def trained(self) -> TrainedFiles:
        """What it starts from, which is its teacher too if the recipe asks for one."""
        taught = self.recipe.finetune.teacher_weight > 0
        return TrainedFiles(self.start, self.start if taught else None)

    def key(self) -> str:
        """Return the hash of everything that the detector depends on."""
        recipe, root = self.recipe, Path(self.recipe.data.root)
        data = annotation_hash(find_split(root, recipe.data.train))
        validates = recipe.finetune.val_epochs > 0
        splits = [annotation_hash(find_split(root, recipe.data.val))] if validates else []
        content = [recipe.finetune_hash, self.architecture.hash, data, self.limit_steps, *splits]
        return content_hash([*content, file_hash(self.start)] if self.start else content)


def finetune(job: FinetuneJob, progress: Progress, warn: Callable[[str], object]) -> None:
    """Train, in this process; a stopped training continues.

    Raises:
        AdaptError: If weights are missing or the loss diverges.
    """
    train = job.recipe.split(job.recipe.data.train)
    provenance = {"annotations_sha256": train.sha256}
    session = Session(
        progress=progress,
        warn=warn,
        limit_steps=job.limit_steps,
        provenance=provenance,
        measure_lost=job.measure_lost,
    )
    run_finetune(job.recipe, job.architecture, train, job.path, session, job.trained)
