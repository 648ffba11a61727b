"""How is a training carried out, whatever it trains? (processes, limits, what is told)"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from adapt.progress import Progress, Stage, ignore, silent, silent_stage
from search.train.world import World, joined_world


@dataclass(frozen=True)
class Session:
    """What a search and a fine-tuning are told besides their recipe.

    Attributes:
        world: The processes that train together; this one alone by default.
        progress: Told after every step.
        warn: Told once of everything that looks like a collapse.
        limit_steps: Shorten every phase of the training to so many steps.
        provenance: What else identifies the inputs, such as the hash of the cost table.
    """

    world: World = field(default_factory=World.alone)
    progress: Progress = silent
    warn: Callable[[str], object] = ignore
    limit_steps: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def joined_session(
    title: str,
    *,
    stage: Stage = silent_stage,
    warn: Callable[[str], object] = ignore,
    limit_steps: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[Session]:
    """Join the processes that ``torchrun`` or ``srun`` started; the first one shows a progress.

    Args:
        title: What the progress display says.
        stage: Opens the progress display.
        warn: See :class:`Session`.
        limit_steps: See :class:`Session`.
        provenance: See :class:`Session`.

    Raises:
        AdaptError: If the processes cannot find each other.
    """
    with joined_world() as world, (stage if world.is_main else silent_stage)(title) as progress:
        yield Session(world, progress, warn, limit_steps, provenance or {})
