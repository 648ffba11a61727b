"""What happens around the steps of every training? (checkpoints, divergence, freed memory)"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapt.artifacts import header, write_json
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from search.recipe.schedule import Schedule
from search.train.checkpoint import Checkpoint, Clock
from search.train.heap import freed_memory_kept
from search.train.session import Session
from search.train.step import DivergedError
from search.train.world import World


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
        minutes: Minutes after which the next step is saved, within an epoch too.

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
    with freed_memory_kept(world.device):
        try:
            yield
        except DivergedError as error:
            if world.is_main:
                _write_images(diverged, train, error)
            raise AdaptError(f"{error} (they are listed in {diverged})") from error


def _write_images(path: Path, train: CocoSplit, error: DivergedError) -> None:
    images = {image.id: image for image in train.images}
    concerned = [images[number] for number in error.image_ids]
    rows = [{"id": image.annotated_id, "file": str(image.path)} for image in concerned]
    write_json(path, header("diverged", reason=str(error), images=rows))
