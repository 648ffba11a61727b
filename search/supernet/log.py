"""Where are the reports of a search written and read? (`search.jsonl`, TensorBoard)"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from adapt.artifacts import write_text
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Entry = dict[str, Any]
CURVES = (  # scalars of an entry that TensorBoard draws
    "weight_loss",
    "arch_loss",
    "lr",
    "expected_cost",
    "argmax_cost",
    "target",
    "cost_weight",
    "op_entropy",
    "width_entropy",
)


class SearchLog:
    """``search.jsonl`` and TensorBoard's event files of a search.

    Args:
        folder: Folder of the search.
        start: Steps already taken; entries of later ones, written by a run that was killed before
            its checkpoint, are dropped.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "search.jsonl"
        # A checkpoint whose log is lost is enough to continue.
        entries = read_log(self.path) if start and self.path.is_file() else []
        kept = [entry for entry in entries if entry["step"] <= start]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._warned = {warning for entry in kept for warning in entry["warnings"]}
        self._board: SummaryWriter = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1
        )

    def append(self, entry: Entry) -> list[str]:
        """Write an entry, and return those of its warnings that are new."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        _to_board(self._board, entry)
        new = [warning for warning in entry["warnings"] if warning not in self._warned]
        self._warned.update(new)
        return new

    def __enter__(self) -> "SearchLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._board.close()


@contextmanager
def search_log(folder: Path, start: int, *, main: bool) -> Iterator[SearchLog | None]:
    """Open the log in the main process; the others have none."""
    if not main:
        yield None
        return
    with SearchLog(folder, start) as log:
        yield log


def read_log(path: Path) -> list[Entry]:
    """Read ``search.jsonl``; lines that a killed run left unfinished are dropped.

    Raises:
        AdaptError: If the file is missing.
    """
    if not path.is_file():
        raise AdaptError(f"search log {path} does not exist; `adapt search` writes it")
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return entries


def _to_board(board: "SummaryWriter", entry: Entry) -> None:
    """Write scalars of an entry: curves, and the probability of every operation and width."""
    step = entry["step"]
    scalars = {name: entry[name] for name in CURVES if entry[name] is not None}
    for block, groups in entry["probabilities"].items():
        for group, values in groups.items():
            scalars |= {f"{block} {group}/{label}": value for label, value in values.items()}
    for name, value in scalars.items():
        board.add_scalar(name, value, step)
    for number, value in enumerate(entry["gate_scale"], start=1):
        board.add_scalar(f"gate scale/block {number}", value, step)
    board.add_text("arg max", _described(entry), step)
    board.flush()


def _described(entry: Entry) -> str:
    blocks = [f"{block['width']}: {' '.join(block['ops'])}" for block in entry["argmax"]]
    return " | ".join(blocks)


class EpochLosses:
    """Sums of an epoch's losses; a checkpoint keeps them, so a resumed search logs equal means."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}  # sum and number of steps, by kind

    def add(self, kind: Literal["weight_loss", "arch_loss"], loss: float) -> None:
        """Count a step's loss."""
        total, number = self._sums.get(kind, [0.0, 0])
        self._sums[kind] = [total + loss, number + 1]

    def means(self) -> dict[str, float | None]:
        """Return the mean weight and architecture loss; None if there was no such step."""
        return {
            kind: self._sums[kind][0] / self._sums[kind][1] if kind in self._sums else None
            for kind in ("weight_loss", "arch_loss")
        }

    def clear(self) -> None:
        """Start an epoch."""
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        self._sums = dict(state["sums"])
