"""What does a search write down after every epoch?"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adapt.artifacts import write_text
from adapt.errors import AdaptError
from adapt.space import SearchSpace

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Entry = dict[str, Any]
CURVES = (
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
        known = start and self.path.is_file()  # a search goes on without its log, too
        kept = [entry for entry in read_log(self.path) if entry["step"] <= start] if known else []
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.known = {warning for entry in kept for warning in entry["warnings"]}
        self._board: SummaryWriter = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1
        )

    def append(self, entry: Entry) -> list[str]:
        """Write an entry, and return those of its warnings that are new."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        _to_board(self._board, entry)
        new = [warning for warning in entry["warnings"] if warning not in self.known]
        self.known.update(new)
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


def named_probabilities(
    space: SearchSpace, ops: Sequence[Sequence[Tensor]], widths: Sequence[Tensor]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the probability of every candidate by block, by position or ``width``, and by name."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for number, (block, chosen, width) in enumerate(
        zip(space.blocks, ops, widths, strict=True), start=1
    ):
        groups = {"width": dict(zip(map(str, block.widths), width.tolist(), strict=True))}
        for position, p in enumerate(chosen):
            names = map(str, block.candidates(position))
            groups[f"op {position + 1}"] = dict(zip(names, p.tolist(), strict=True))
        found[f"block {number}"] = groups
    return found


class Totals:
    """Sums of the losses of an epoch, so that a search resumed in it reports the same means."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, kind: str, loss: float) -> None:
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
