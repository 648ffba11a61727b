"""Which units of a space does this machine measure? (`profile --grid`, `--shard`, what is left)"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.table import CostTable
from adapt.cost.units import Measurable, Unit, boundaries
from adapt.errors import AdaptError
from bench.costs.interpolate import measured_units

Item = TypeVar("Item")


@dataclass(frozen=True)
class Selection:
    """What there is to measure.

    Attributes:
        space: Distinct units of the space.
        on_design: Those that some shard measures, and those of the source's own detector; the
            others are inferred from them.
        of_shard: What this shard measures: its units and boundaries.
        to_measure: Those of them that the table lacks.
        to_infer: Units that the table lacks and that are inferred, once all shards are merged.
    """

    space: tuple[Unit, ...]
    on_design: tuple[Unit, ...]
    of_shard: tuple[Measurable, ...]
    to_measure: tuple[Measurable, ...]
    to_infer: tuple[Unit, ...]

    @property
    def distinct(self) -> int:
        """Number of units that are measured or inferred: of the space, and of the source."""
        return len({*self.space, *self.on_design})

    @property
    def done(self) -> int:
        """Number of rows that the table already holds."""
        return len(self.of_shard) - len(self.to_measure)


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of a measurement that equal machines share; ``number`` is from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``2/4``.

        Raises:
            AdaptError: If the text has another form or the number lies outside.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
            return cls(int(number), int(count))
        raise AdaptError(f"--shard must be like 2/4, the second of four, got {text!r}")

    @classmethod
    def from_environment(cls) -> "Shard":
        """Return this task's part in a SLURM job array, or the whole outside of one."""
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
        if not all(name in os.environ for name in names):
            return cls()
        task, first, count = (int(os.environ[name]) for name in names)
        return cls(task - first + 1, count)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return every ``count``-th item."""
        # Not a run of neighbours: those are of one block, and shards would not take equally long.
        return items[self.number - 1 :: self.count]


WHOLE = Shard()


@dataclass(frozen=True)
class Part:
    """Which of the units of a space are measured here.

    Attributes:
        shard: This machine's part of the units that are measured.
        grid: 1 measures every unit; a larger one about an eighth of them, the others are inferred,
            see :mod:`bench.costs.interpolate`.
    """

    shard: Shard = WHOLE
    grid: int = 1


EVERYTHING = Part()


def select(
    detectors: DetectorSpace, table: CostTable | None = None, part: Part = EVERYTHING
) -> Selection:
    """Select what to measure.

    Args:
        detectors: The detectors whose units are selected from.
        table: What was measured before.
        part: Which of the units are measured here.
    """
    space = detectors.units()
    # The source is what every other detector is compared with: none of it is inferred, and it is in
    # the table even where its widths are no candidates.
    on_design = list(dict.fromkeys([*measured_units(space, part.grid), *detectors.source_units()]))
    ends = list(dict.fromkeys(end for unit in on_design for end in boundaries(unit)))
    of_shard: list[Measurable] = [*part.shard.of(ends), *part.shard.of(on_design)]
    known = set(on_design)
    others = [unit for unit in space if unit not in known]
    to_measure = of_shard if table is None else table.missing(of_shard, inferred_too=True)
    # With new measurements, what was inferred from fewer is inferred again.
    to_infer = others if table is None else table.missing(others, inferred_too=bool(to_measure))
    return Selection(
        space=tuple(space),
        on_design=tuple(on_design),
        of_shard=tuple(of_shard),
        to_measure=tuple(to_measure),
        to_infer=tuple(to_infer),
    )


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """Return the items in a random order."""
    return random.Random(seed).sample(list(items), len(items))
