"""How does a step of a verification run, so that nothing that happens in it stops the others?

Each runs in a process of its own with a time limit: an exception, a crash or a hang is its own
failure. What libraries print there goes to a file, whose end explains a crash.
"""

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pebble import ProcessExpired, concurrent

from adapt.parent import end_with_parent
from bench.latency.workers import process_context

STOP_SECONDS = 5.0  # that a process has to end
Status = Literal["PASS", "FAIL", "SKIP"]
PRELOAD = "bench.doctor.verify"  # what every step needs, imported once
TAIL = 300  # characters of what a crashed step printed last


@dataclass(frozen=True)
class Reading:
    """A number that a step found, and what it may be.

    Attributes:
        name: What it is, with its unit.
        value: The number.
        limit: Largest value that passes; None if any does.
        at_least: Whether the limit is the smallest value instead.
    """

    name: str
    value: float
    limit: float | None = None
    at_least: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))  # no number of NumPy's

    @property
    def passed(self) -> bool:
        """Whether the value keeps to its limit; what is no number does not."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        return {**asdict(self), "value": value, "passed": self.passed}

    def __str__(self) -> str:
        if self.limit is None:
            return f"{self.name} {self.value:.3g}"
        sign = (">=" if self.at_least else "<=") if self.passed else "not " + "<>"[self.at_least]
        return f"{self.name} {self.value:.3g} {sign} {self.limit:g}"


Check = Callable[..., Sequence[Reading]]


@dataclass(frozen=True)
class Step:
    """One thing to verify.

    Attributes:
        title: What is verified.
        check: A function of a module, which runs in another process.
        arguments: What it is called with.
        seconds: Its time limit.
        needs: Titles of the steps whose results it uses.
        skip: Why it cannot be done here; empty if it can.
    """

    title: str
    check: Check | None = None
    arguments: tuple[Any, ...] = ()
    seconds: float = 120.0
    needs: tuple[str, ...] = ()
    skip: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        title: The step's.
        status: ``PASS``, ``FAIL`` or ``SKIP``.
        readings: What it found.
        reason: Why it was skipped or stopped, or which readings failed.
        seconds: How long it took.
    """

    title: str
    status: Status
    readings: tuple[Reading, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        readings = [reading.to_dict() for reading in self.readings]
        return {**asdict(self), "seconds": round(self.seconds, 3), "readings": readings}

    def __str__(self) -> str:
        found = "; ".join(map(str, self.readings)) or self.reason
        return f"{self.status}  {self.title}: {found}  [{self.seconds:.1f} s]"


def run_step(step: Step, passed: Sequence[str]) -> Outcome:
    """Run a step, whatever happens in it.

    Args:
        step: The step.
        passed: Titles of the steps that passed.
    """
    missing = [title for title in step.needs if title not in passed]
    if step.skip or missing or step.check is None:
        return Outcome(
            step.title,
            "SKIP",
            reason=step.skip or f"needs {', '.join(missing)}, which did not pass",
        )
    start = time.perf_counter()
    found, reason = contained(step.check, step.arguments, step.seconds)
    readings = tuple(found or ())
    failed = [str(reading) for reading in readings if not reading.passed]
    reason = reason or "; ".join(failed)
    seconds = time.perf_counter() - start
    return Outcome(step.title, "FAIL" if reason else "PASS", readings, reason, seconds)


def contained(
    function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float
) -> tuple[Any, str]:
    """Call a function in a process of its own.

    Args:
        function: A function of a module.
        arguments: What it is called with.
        seconds: Time limit.

    Returns:
        Its result, or None; and why there is none, or an empty text.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        # No daemon: what measures on a GPU has processes of its own.
        run: Any = concurrent.process(  # type: ignore[call-overload]
            daemon=False, timeout=seconds, context=process_context(PRELOAD)
        )(_call_quietly)
        return _result(run(log, function, arguments), log)


def _call_quietly(log: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Call a function; what it and its libraries print goes to a file."""
    end_with_parent()
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
    except FileNotFoundError:
        os._exit(1)  # Ctrl-C came while this process started, and nobody waits for it
    os.dup2(file, 1)
    os.dup2(file, 2)
    return function(*arguments)


def _result(future: "Future[Any]", log: Path) -> tuple[Any, str]:
    try:
        return future.result(), ""
    except TimeoutError as error:
        reason = f"took longer than {error.args[1]:g} s and was stopped"
    except ProcessExpired as error:
        said = " ".join(log.read_text(errors="replace").split()) if log.exists() else ""
        reason = f"its process died (exit code {error.exitcode}) {said[-TAIL:]}".strip()
    except KeyboardInterrupt:
        future.cancel()  # ends its process, which still needs the folder of its log until then
        for process in multiprocessing.active_children():
            process.join(STOP_SECONDS)
        raise
    except (Exception, SystemExit) as error:  # of any library: a verification goes on
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None, reason
