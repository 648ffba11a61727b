"""How does long work report its progress?"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Protocol

from adapt.errors import AdaptError


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


def part_of(progress: Progress, number: int, parts: int) -> Progress:
    """Return the progress of one of several works that are reported as one, so that none goes back.

    Args:
        progress: Of all of them.
        number: Which one, from 0.
        parts: How many there are; each counts the same.
    """

    def told(done: int, total: int, note: str = "", /) -> None:
        progress(number * total + done, parts * total, note)

    return told


@contextmanager
def silent_stage(title: str) -> Iterator[Progress]:
    """Show neither a stage nor its progress."""
    yield silent


@contextmanager
def console_stage(title: str) -> Iterator[Progress]:
    """Show a stage on stderr: a bar on a terminal, elsewhere a line now and then and at its end.

    ``ADAPT_PROGRESS_SECONDS`` in the environment is the time between two lines.

    Raises:
        AdaptError: If that is no number of seconds.
    """
    from rich.console import Console

    console = Console(stderr=True)
    start = time.monotonic()
    # FORCE_COLOR, which CI often sets, makes any file a terminal for Rich; dumb ones have no bar.
    if sys.stderr and sys.stderr.isatty() and console.is_interactive:
        with _bar(console, title) as progress:
            yield progress
    else:
        yield ProgressLines(title, _line_seconds())
        print(f"{title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


class ProgressLines:
    """Prints a line on stderr now and then, for logs: what is done, how long it took and will take.

    Args:
        title: Begins every line.
        seconds: Least time between two lines.
    """

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._start = self._last = time.monotonic()
        # Work that is resumed begins in the middle: what this process did tells the rate.
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if self._first is None or done < self._first[0]:
            self._first = done, now
        if now - self._last < self._seconds:
            return
        self._last = now
        parts = [f"{self._title}: {done} of {total}", note, f"{_clock(now - self._start)} elapsed"]
        before, then = self._first
        if done > before:
            left = (now - then) / (done - before) * (total - done)
            parts.append(f"{_clock(left)} left")
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _line_seconds() -> float:
    text = os.environ.get("ADAPT_PROGRESS_SECONDS", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not seconds >= 0:
        raise AdaptError(f"ADAPT_PROGRESS_SECONDS must be a number of seconds, got {text!r}")
    return seconds


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
