"""How does long work report its progress?"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called after each unit of work."""

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Report that ``done`` of ``total`` units are done; ``note`` is shown beside them."""


# Opens a stage of the work with this title; what it yields is called while the stage lasts.
Stage = Callable[[str], AbstractContextManager[Progress]]


def silent(done: int, total: int, note: str = "", /) -> None:
    """Show no progress."""


def ignore(message: str) -> None:
    """Show no message."""


@contextmanager
def silent_stage(title: str) -> Iterator[Progress]:
    """Show neither a stage nor its progress."""
    yield silent


@contextmanager
def console_stage(title: str) -> Iterator[Progress]:
    """Show a stage on stderr: a bar with an ETA on a terminal, one line at its end elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    start = time.monotonic()
    if console.is_terminal:
        with _bar(console, title) as progress:
            yield progress
    else:
        yield silent
        print(f"{title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _bar(console: object, title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    assert isinstance(console, Console)
    columns = (
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str = "", /) -> None:
            bars.update(task, completed=done, total=total, note=note)

        yield report
