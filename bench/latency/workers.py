"""In which process is a unit or a detector built and timed, and what if that process dies?

On a CPU: in this process. On a GPU: one or more processes build, then one measures, never both at
once.
There a build or a measurement can crash, hang, or leave a CUDA error behind that fails whatever
runs next in its process. Such a failure costs one subject, not the whole profile.
"""

import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

import torch
from pebble import ProcessExpired, ProcessPool

from adapt.errors import AdaptError
from adapt.parent import end_with_parent
from adapt.progress import Progress, silent
from bench.latency.backend import Backend, Built
from bench.latency.subject import ANCHOR, Subject
from bench.latency.timing import Anchor, Latency, Protocol, Timer, measure

BUILD_SECONDS = 600.0  # an engine of one operation takes 2 to 15 s
MEASURE_SECONDS = 60.0  # per subject; loading included


@dataclass(frozen=True)
class Failure:
    """Why a subject has no latency.

    Attributes:
        reason: Why.
        raised: Whether by an exception: its process lives on, maybe with a CUDA error.
    """

    reason: str
    raised: bool = False


@dataclass(frozen=True)
class Measured:
    """Latencies of subjects that were measured together, and the anchor's fastest call."""

    latencies: dict[str, Latency]
    anchor_ms: float


@dataclass(frozen=True)
class Measurement:
    """How latencies are measured.

    Attributes:
        backend: Where.
        protocol: How much of each subject.
        seed: Seed of the order in which subjects are measured.
        build_jobs: Processes that build at once; only isolated backends have any. TensorRT must
            have one: it times tactics on the GPU as it builds, and would time them beside another
            build. TensorRT-RTX builds on the processor.
        build_seconds: Time limit of one build.
        measure_seconds: Time limit of the measurement of one subject.

    Raises:
        AdaptError: If engines of TensorRT are to be built at once.
    """

    backend: Backend
    protocol: Protocol
    seed: int = 0
    build_jobs: int = 1
    build_seconds: float = BUILD_SECONDS
    measure_seconds: float = MEASURE_SECONDS

    def __post_init__(self) -> None:
        if self.build_jobs > 1 and self.backend.runtime == "tensorrt":
            raise AdaptError(
                f"--build-jobs {self.build_jobs} would build engines of TensorRT at once, each of "
                "which times its tactics on the GPU and would choose wrong ones beside the others; "
                "leave it at 1, only tensorrt-rtx builds on the processor"
            )


class Workers:
    """Builds and measures subjects; a context manager.

    Args:
        how: Where, how much and in which order.
        anchor_ms: Fastest latency of the anchor in earlier runs, under the same conditions. On a
            GPU it does not count: an earlier run may have had other clocks, and no repetition
            makes the GPU as fast as then.

    Attributes:
        anchor_ms: Fastest latency of the anchor so far.
        kept: A subject that is measured beside others again and again: it is built once.
    """

    kept: Subject | None = None

    def __init__(self, how: Measurement, *, anchor_ms: float = float("inf")) -> None:
        self.how, self._isolated = how, how.backend.isolated
        self.anchor_ms = float("inf") if self._isolated else anchor_ms
        self._pools: dict[str, ProcessPool] = {}
        self._anchor: Built | None = None
        self._kept: dict[Subject, Built] = {}

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in list(self._pools):
            self._restart(name)
        _anchor_timer.cache_clear()
        # Eager PyTorch was measured on its own number of threads: training after it has another.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)

    def run(
        self, subjects: Mapping[str, Subject], *, progress: Progress = silent
    ) -> dict[str, Latency | Failure]:
        """Build all subjects, then time them in interleaved rounds.

        Args:
            subjects: What to build and time, by name.
            progress: Called with (done, total) after every build, and after every sample that
                this process takes.

        Raises:
            AdaptError: If the anchor cannot be built, so nothing can be measured.
        """
        total = len(subjects) * (1 + self.how.protocol.rounds)
        known = {name: self._kept[of] for name, of in subjects.items() if of in self._kept}
        builds: dict[str, Built | Failure] = dict(known)
        for name, build in self._build({n: of for n, of in subjects.items() if n not in known}):
            builds[name] = build
            progress(len(builds), total)
            if subjects[name] == self.kept and not isinstance(build, Failure):
                self._kept[subjects[name]] = build
        failed = {name: build for name, build in builds.items() if isinstance(build, Failure)}
        built = {name: build for name, build in builds.items() if name not in failed}

        def sampled(done: int, _: int, note: str = "", /) -> None:
            progress(len(subjects) + done, total, note)

        measured = self._measure(built, sampled) if built else {}
        progress(total, total)
        return {**failed, **measured}

    def latencies(
        self, subjects: Sequence[Subject], *, name: str, fix: str, progress: Progress = silent
    ) -> list[Latency]:
        """Build and time subjects of which none may fail.

        Args:
            subjects: What to build and time.
            name: What the message of an error calls one of them.
            fix: What the message tells the user to do.
            progress: As in :meth:`run`.

        Raises:
            AdaptError: If one cannot be built or measured.
        """
        outcomes = self.run({str(i): s for i, s in enumerate(subjects)}, progress=progress)
        latencies = []
        for number in range(len(subjects)):
            outcome = outcomes[str(number)]
            if isinstance(outcome, Failure):
                raise AdaptError(f"{name} could not be measured: {outcome.reason}; {fix}")
            latencies.append(outcome)
        return latencies

    def _build(self, subjects: Mapping[str, Subject]) -> Iterator[tuple[str, Built | Failure]]:
        build, seconds = self.how.backend.build, self.how.build_seconds
        if self._anchor is None:
            self._anchor = self._call("build", seconds, build, ANCHOR)
        if not self._isolated:
            for name, subject in subjects.items():
                yield name, build(subject)
            return
        pool = self._pool("build", self.how.build_jobs)
        futures = {
            name: pool.schedule(build, (subject,), timeout=seconds)
            for name, subject in subjects.items()
        }
        raised = []
        for name, future in futures.items():
            outcome = _outcome(future)
            if isinstance(outcome, Failure) and outcome.raised:
                raised.append(name)
            else:
                yield name, outcome
        # One CUDA error fails all later builds of its process: each of them by itself.
        for name in raised:
            self._restart("build")
            pool = self._pool("build", self.how.build_jobs)
            yield name, _outcome(pool.schedule(build, (subjects[name],), timeout=seconds))
        if raised:
            self._restart("build")

    def _measure(
        self, built: Mapping[str, Built], progress: Progress
    ) -> dict[str, Latency | Failure]:
        seconds = self.how.measure_seconds * (1 + len(built))  # and the anchor
        arguments: list[Any] = [self.how, self._anchor, self.anchor_ms, dict(built)]
        if not self._isolated:
            arguments.append(progress)  # a function of this process: another cannot call it
        try:
            measured = self._call("measure", seconds, _measure_together, *arguments)
        except AdaptError as error:
            if not self._isolated:
                raise
            self._restart("measure")  # a CUDA error would fail all that follows
            if len(built) == 1:
                return dict.fromkeys(built, Failure(str(error)))
            # One of them is to blame: each by itself, so that only that one fails.
            outcomes: dict[str, Latency | Failure] = {}
            for name, subject in built.items():
                outcomes |= self._measure({name: subject}, progress)
            return outcomes
        self.anchor_ms = measured.anchor_ms
        return dict(measured.latencies)

    def _call(self, pool: str, seconds: float, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, in a process of its own if the backend is isolated."""
        if not self._isolated:
            return work(*arguments)
        jobs = self.how.build_jobs if pool == "build" else 1
        future = self._pool(pool, jobs).schedule(work, arguments, timeout=seconds)
        outcome = _outcome(future)
        if isinstance(outcome, Failure):
            raise AdaptError(outcome.reason)
        return outcome

    def _pool(self, name: str, jobs: int) -> ProcessPool:
        if name not in self._pools:
            self._pools[name] = ProcessPool(
                max_workers=jobs, context=process_context(), initializer=end_with_parent
            )
        return self._pools[name]

    def _restart(self, name: str) -> None:
        pool = self._pools.pop(name, None)
        if pool is not None:
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()


def process_context(preload: str = __name__) -> BaseContext:
    """Return how processes start; ``preload`` is a module that they will need."""
    # Not by fork: CUDA does not work in a fork of a process that has used it.
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    # A server that has imported PyTorch and never touches CUDA: its forks take milliseconds, where
    # a spawned process imports for seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    _start_server_that_ignores_interrupts()
    return context


def _start_server_that_ignores_interrupts() -> None:
    """Start the fork server, whose processes all ignore Ctrl-C, as it does.

    A terminal interrupts every process of a command. This one tells of it and ends the others,
    which would print tracebacks.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only there can signals be set
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _outcome(future: "Future[Any]") -> Any:
    """Return the result of a call in another process, or why there is none."""
    try:
        return future.result()
    except TimeoutError as error:
        return Failure(f"took longer than {error.args[1]:g} s and was stopped")
    except ProcessExpired as error:
        return Failure(f"its process died (exit code {error.exitcode})")
    except (AdaptError, RuntimeError, MemoryError) as error:
        return Failure(str(error).partition("\n")[0], raised=True)


def _measure_together(
    how: Measurement,
    anchor: Built,
    anchor_ms: float,
    built: Mapping[str, Built],
    progress: Progress = silent,
) -> Measured:
    backend = how.backend
    timers = {name: backend.load(subject) for name, subject in built.items()}
    timed_anchor = Anchor(_anchor_timer(backend, anchor), best_ms=anchor_ms)
    latencies = measure(
        timers,
        how.protocol,
        anchor=timed_anchor,
        seed=how.seed,
        state=backend.state,
        progress=progress,
    )
    return Measured(latencies, timed_anchor.best_ms)


@functools.lru_cache(maxsize=1)
def _anchor_timer(backend: Backend, built: Built) -> Timer:
    """Load the anchor once per process."""
    return backend.load(built)
