"""Where are the reports of a training written and read? (JSON lines, TensorBoard)"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.artifacts import NO_SPACE, write_text
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Entry = dict[str, Any]
Draw = Callable[["SummaryWriter", Entry], None]


@dataclass(frozen=True)
class LogFiles:
    """The files of a training's log.

    Attributes:
        lines: One JSON object per epoch and line.
        board: Folder of TensorBoard's event files.
    """

    lines: Path
    board: Path


class TrainingLog:
    """JSON lines and TensorBoard's event files of a training; the first entry creates them.

    Args:
        files: Where they are.
        start: Steps already taken; entries of later ones, written by a run that was killed before
            its checkpoint, are dropped.
        draw: Writes an entry to TensorBoard.
    """

    def __init__(self, files: LogFiles, start: int, draw: Draw) -> None:
        self.path, self._folder, self._start, self._draw = files.lines, files.board, start, draw
        self._board: SummaryWriter | None = None
        self._warned: set[str] = set()

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        # A checkpoint whose log is lost is enough to continue.
        entries = read_log(self.path) if self._start and self.path.is_file() else []
        kept = [entry for entry in entries if entry["step"] <= self._start]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._warned = {warning for entry in kept for warning in entry.get("warnings", ())}
        return SummaryWriter(str(self._folder), purge_step=self._start + 1)

    def append(self, entry: Entry) -> list[str]:
        """Write an entry, and return those of its warnings that are new."""
        self._board = self._board or self._open()
        with _space_for(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        with _space_for(self._folder):
            self._draw(self._board, entry)
            self._board.flush()
        warnings = entry.get("warnings", ())
        new = [warning for warning in warnings if warning not in self._warned]
        self._warned.update(new)
        return new

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board:
            with _space_for(self._folder):
                self._board.close()


@contextmanager
def _space_for(path: Path) -> Iterator[None]:
    """Name the file that there is no space for; errors of open files do not."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise AdaptError(
            f"cannot write {path}: {error.strerror}; free some space and run it again, which "
            "continues from the last checkpoint"
        ) from error


@contextmanager
def _told_once() -> Iterator[None]:
    """Keep TensorBoard's thread from printing the error of a full disk that flushing raises too."""
    usual = threading.excepthook

    def hook(caught: threading.ExceptHookArgs) -> None:
        if not (isinstance(caught.exc_value, OSError) and caught.exc_value.errno in NO_SPACE):
            usual(caught)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = usual


@contextmanager
def training_log(
    files: LogFiles, start: int, draw: Draw, *, main: bool
) -> Iterator[TrainingLog | None]:
    """Open the log in the main process; the others have none."""
    if not main:
        yield None
        return
    with _told_once():
        log = TrainingLog(files, start, draw)
        try:
            yield log
        finally:
            log.close()


def draw_scalars(board: "SummaryWriter", scalars: Mapping[str, float | None], step: int) -> None:
    """Write the values that there are to TensorBoard."""
    for name, value in scalars.items():
        if value is not None:
            board.add_scalar(name, value, step)


def read_log(path: Path) -> list[Entry]:
    """Read the lines of a log; those that a killed run left unfinished are dropped.

    Raises:
        AdaptError: If the file is missing.
    """
    if not path.is_file():
        raise AdaptError(f"log {path} does not exist; `adapt search` and `adapt finetune` write it")
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        entries += [entry] if isinstance(entry, dict) else []
    return entries


class EpochMeans:
    """Means of an epoch's values; a checkpoint keeps them, so a resumed training logs equal ones.

    Args:
        names: The values.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._sums: dict[str, list[float]] = {}  # weighted sum and sum of weights, by name

    def add(self, weight: float = 1, **values: float) -> None:
        """Count the values of a step, or of a part of it that weighs less."""
        for name, value in values.items():
            total, weights = self._sums.get(name, [0.0, 0])
            self._sums[name] = [total + weight * value, weights + weight]

    def means(self) -> dict[str, float | None]:
        """Return the mean of every value; None if there was none."""
        known = {name: total / weights for name, (total, weights) in self._sums.items()}
        return {name: known.get(name) for name in self._names}

    def clear(self) -> None:
        """Start an epoch."""
        self._sums = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore the state."""
        self._sums = dict(state["sums"])
