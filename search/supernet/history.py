"""How probable was every candidate after each epoch of a search? (read from `search.jsonl`)"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adapt.artifacts import parsing, typed
from search.derive.decision import entropy_share
from search.train.log import Entry, read_log

Named = dict[str, dict[str, dict[str, float]]]  # by block, by position or width, by candidate
FIX = "run the same `adapt search` again"


@dataclass(frozen=True, eq=False)
class Choice:
    """What a search chooses in one place.

    Attributes:
        block: Name of the block, such as ``block 1``.
        what: ``width``, or the position of an operation, such as ``op 1``.
        candidates: Names of the candidates.
        probabilities: ``float64[E, K]`` after each epoch.
    """

    block: str
    what: str
    candidates: tuple[str, ...]
    probabilities: NDArray[np.float64]

    @property
    def leaders(self) -> NDArray[np.int64]:
        """``int64[E]``, the most probable candidate after each epoch."""
        leaders: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return leaders

    @property
    def entropies(self) -> list[float]:
        """Entropy after each epoch: 1 is undecided, 0 decided."""
        return [entropy_share(p) for p in torch.from_numpy(self.probabilities)]


@dataclass(frozen=True)
class History:
    """What a search reported after each of E epochs.

    Attributes:
        entries: The reports.
        choices: Its choices in the order of the network, of each block the width first.
    """

    entries: tuple[Entry, ...]
    choices: tuple[Choice, ...]

    @classmethod
    def read(cls, path: Path) -> "History":
        """Read a ``search.jsonl``; lines that a killed search left unfinished are dropped.

        Raises:
            AdaptError: If it is missing, or no reports of a search.
        """
        entries = read_log(path)
        with parsing("log", path, FIX):
            if not entries and path.stat().st_size:
                raise ValueError("it holds no reports of epochs")
            of_epochs = [typed(Named, entry["probabilities"]) for entry in entries]
            return cls(tuple(entries), tuple(_choices(of_epochs)) if entries else ())

    @property
    def epochs(self) -> list[float]:
        """Epochs after which there is a report."""
        return self.values("epoch")

    @property
    def blocks(self) -> dict[str, list[Choice]]:
        """The choices of each block."""
        blocks: dict[str, list[Choice]] = {}
        for choice in self.choices:
            blocks.setdefault(choice.block, []).append(choice)
        return blocks

    @property
    def first_step(self) -> int:
        """The first report after a step that changed probabilities; E if there is none."""
        stepped = [entry.get("arch_loss") is not None for entry in self.entries]
        return stepped.index(True) if any(stepped) else len(stepped)

    def values(self, name: str) -> list[Any]:
        """Return a value of every report; None where it has none."""
        return [entry.get(name) for entry in self.entries]


def _choices(of_epochs: Sequence[Named]) -> list[Choice]:
    return [
        Choice(
            block,
            what,
            tuple(candidates),
            np.array([[of[block][what][name] for name in candidates] for of in of_epochs]),
        )
        for block, of_block in of_epochs[0].items()
        for what, candidates in of_block.items()
    ]
