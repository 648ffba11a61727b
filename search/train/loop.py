"""How does a training lose nothing when it is killed? (one loop for search and fine-tuning)"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.data.coco import CocoSplit
from search.recipe.schedule import Schedule
from search.train.checkpoint import Clock, Stateful, resume, save_checkpoint
from search.train.heap import freed_memory_kept
from search.train.session import Session
from search.train.step import divergence_saved
from search.train.world import World


@dataclass(frozen=True)
class Checkpoint:
    """The file that a killed training continues from.

    Attributes:
        path: The file.
        kind: Its format.
        parts: What is saved and restored: model, optimizers, schedules, random numbers.
        identity: Hash of everything that defines the training; another one is refused.
        fields: What else the file says.
    """

    path: Path
    kind: str
    parts: Mapping[str, Stateful]
    identity: str
    fields: Mapping[str, Any]

    def resume(self, world: World) -> int:
        """Restore what the file holds, if there is one, and return the steps already taken.

        Raises:
            AdaptError: If it is damaged or of another training, or the processes do not agree.
        """
        start = resume(self.path, self.kind, self.parts, self.identity)
        world.agree((start, self.identity), "the last checkpoint")
        return start

    def save(self, step: int) -> None:
        """Write the file after so many steps."""
        identity = self.identity
        save_checkpoint(
            self.path, self.kind, self.parts, step=step, identity=identity, **self.fields
        )


def checkpointed(
    losses: Iterable[float],
    start: int,
    schedule: Schedule,
    checkpoint: Checkpoint,
    session: Session,
    minutes: float,
) -> Iterator[int]:
    """Take the steps of a training; save it after every epoch, and in between by the clock.

    Args:
        losses: Takes one step for every loss it yields, from step ``start`` to the last one.
        start: Steps already taken.
        schedule: How many steps there are, and which end an epoch.
        checkpoint: The file to save to.
        session: The processes; the first one saves.
        minutes: Most minutes between two checkpoints.

    Yields:
        The steps taken, after each one; it is saved when the caller asks for the next.
    """
    clock = Clock(minutes)
    for step, loss in enumerate(losses, start + 1):
        session.progress(step, schedule.total_steps, f"loss {loss:.3f}")
        yield step
        if session.world.is_main and (schedule.ends_epoch(step) or clock.due()):
            checkpoint.save(step)


@contextmanager
def training_guarded(diverged: Path, train: CocoSplit, world: World) -> Iterator[None]:
    """Keep freed memory for the next step, and write down the images on which training diverges.

    Args:
        diverged: JSON file to write then.
        train: Training images.
        world: The processes.

    Raises:
        AdaptError: If the training diverges.
    """
    with freed_memory_kept(world.device), divergence_saved(diverged, train, world):
        yield
