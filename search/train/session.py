"""What is a training told besides its recipe? (processes, progress, warnings, a step limit)"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.artifacts import make_folder
from adapt.lock import ELSEWHERE, alone
from adapt.progress import Progress, Stage, ignore, silent, silent_stage
from search.train.world import World, joined_world


@dataclass(frozen=True)
class Session:
    """How a search or a fine-tuning is carried out; its recipe says what is trained.

    Attributes:
        world: The processes that train together; this one alone by default.
        progress: Called after every step.
        warn: Called once with every warning, such as of a collapse.
        limit_steps: Shorten every phase of the training to so many steps.
        provenance: What else identifies the inputs, such as the hash of the cost table.
        measure_lost: Whether the detector's file says what the mapping lost. It takes a third of
            the mapping's time, which trainings whose files nobody reads can save.
    """

    world: World = field(default_factory=World.alone)
    progress: Progress = silent
    warn: Callable[[str], object] = ignore
    limit_steps: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    measure_lost: bool = True

    def alone(self, file: Path) -> AbstractContextManager[None]:
        """Keep other commands from what a lock file stands for; the first process holds it.

        Raises:
            AdaptError: If another process has it.
        """
        if not self.world.is_main:
            return nullcontext()
        make_folder(file.parent)
        return alone(file, ELSEWHERE)

    def tell(self, doubt: str) -> None:
        """Warn of something, once for all processes, if it is not empty."""
        if doubt and self.world.is_main:
            self.warn(doubt)


@contextmanager
def joined_session(
    title: str,
    *,
    stage: Stage = silent_stage,
    warn: Callable[[str], object] = ignore,
    limit_steps: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Iterator[Session]:
    """Join the processes that ``torchrun`` or ``srun`` started; the first one shows the progress.

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
