"""How is a study carried out? (how many trainings at once, which part of them, which costs)"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapt.progress import Stage, ignore, silent_stage
from bench.costs.selection import WHOLE, Shard


@dataclass(frozen=True)
class Execution:
    """How a study is carried out.

    Attributes:
        at_once: Trainings that run side by side, one thread each.
        shard: Which of the seeds are done here; arms are dropped only by a study of all seeds.
        costs: Cost table of the device; measured if None and an arm needs one.
        display: Opens the progress display of a step.
        warn: Called with every warning.
    """

    at_once: int = 1
    shard: Shard = WHOLE
    costs: Path | None = None
    display: Stage = silent_stage
    warn: Callable[[str], object] = ignore
