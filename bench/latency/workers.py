"""In which process is something built or timed?

On a CPU in this one. GPU builds and measurements can crash, hang, or leave a CUDA error behind
that fails whatever follows, so they run in processes of their own: several that build, one that
measures, never both at once. What a process dies of costs that one subject, not the profile.
"""

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, Self

from pebble import ProcessExpired, ProcessPool

from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.latency.backend import ANCHOR, Backend, Built, Subject
from bench.latency.timing import Anchor, Latency, Protocol, Timer, measure

BUILD_SECONDS = 600.0  # an engine of one operation takes 2 to 15 s
MEASURE_SECONDS = 60.0  # per subject; loading included


@dataclass(frozen=True)
class Failure:
    """Why a subject has no latency."""

    reason: str


@dataclass(frozen=True)
class Measured:
    """Latencies of a chunk, and the anchor's best."""

    latencies: dict[str, Latency]
    anchor_ms: float


@dataclass(frozen=True)
class Measurement:
    """How latencies are measured.

    Attributes:
        backend: On what.
        protocol: How much of each subject.
        seed: Seed of the order.
        build_jobs: Processes that build at once; only isolated backends have any.
        build_seconds: Time limit of one build.
        measure_seconds: Time limit of the measurement of one subject.
    """

    backend: Backend
    protocol: Protocol
    seed: int = 0
    build_jobs: int = 1
    build_seconds: float = BUILD_SECONDS
    measure_seconds: float = MEASURE_SECONDS


class Workers:
    """Builds and measures subjects; a context manager.

    Args:
        how: Where, how much and in which order.
        anchor_ms: Fastest latency of the anchor so far, under the same conditions.

    Attributes:
        anchor_ms: Fastest latency of the anchor so far.
    """

    def __init__(self, how: Measurement, *, anchor_ms: float = float("inf")) -> None:
        self.how, self.anchor_ms = how, anchor_ms
        self._isolated = how.backend.isolated
        self._pools: dict[str, ProcessPool] = {}
        self._anchor: Built | None = None

    def __enter__(self) -> Self:
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

    def run(
        self, subjects: Mapping[str, Subject], *, progress: Progress = silent
    ) -> dict[str, Latency | Failure]:
        """Build all subjects, then time them in interleaved rounds.

        Args:
            subjects: What to build and time, by name.
            progress: Told after every build, and after every sample that this process takes.

        Raises:
            AdaptError: If the anchor cannot be built, so nothing can be measured.
        """
        total = len(subjects) * (1 + self.how.protocol.rounds)
        outcomes = {}
        for name, outcome in self._build(subjects):
            outcomes[name] = outcome
            progress(len(outcomes), total)
        failed = {name: found for name, found in outcomes.items() if isinstance(found, Failure)}
        built = {name: found for name, found in outcomes.items() if name not in failed}

        def measured(done: int, _: int, note: str = "", /) -> None:
            progress(len(subjects) + done, total, note)

        found = self._measure(built, measured) if built else {}
        progress(total, total)
        return {**failed, **found}

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
        for name, future in futures.items():
            yield name, _outcome(future)

    def _measure(
        self, built: Mapping[str, Built], progress: Progress
    ) -> dict[str, Latency | Failure]:
        seconds = self.how.measure_seconds * (1 + len(built))
        arguments: list[Any] = [self.how, self._anchor, self.anchor_ms, dict(built)]
        if not self._isolated:
            arguments.append(progress)  # no call crosses processes
        try:
            found = self._call("measure", seconds, _measure_chunk, *arguments)
        except AdaptError as error:
            if not self._isolated:
                raise
            self._restart("measure")  # a CUDA error would fail all that follows
            if len(built) == 1:
                return dict.fromkeys(built, Failure(str(error)))
            alone = [self._measure({name: one}, progress) for name, one in built.items()]
            return {name: result for results in alone for name, result in results.items()}
        self.anchor_ms = found.anchor_ms
        return dict(found.latencies)

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
            self._pools[name] = ProcessPool(max_workers=jobs, context=_context())
        return self._pools[name]

    def _restart(self, name: str) -> None:
        pool = self._pools.pop(name, None)
        if pool is not None:
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()


def _context() -> BaseContext:
    """Return how processes start: CUDA does not survive the fork of a process that used it.

    A server that has imported everything and never touches CUDA forks in milliseconds, where a
    process of its own imports PyTorch for seconds; Windows has no such server.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _outcome(future: "Future[Any]") -> Any:
    """Return the result of a call in another process, or what became of it."""
    try:
        return future.result()
    except TimeoutError as error:
        return Failure(f"took longer than {error.args[1]:g} s and was stopped")
    except ProcessExpired as error:
        return Failure(f"its process died (exit code {error.exitcode})")
    except (AdaptError, RuntimeError, MemoryError) as error:
        return Failure(str(error).partition("\n")[0])


def _measure_chunk(
    how: Measurement,
    anchor: Built,
    anchor_ms: float,
    built: Mapping[str, Built],
    progress: Progress = silent,
) -> Measured:
    backend = how.backend
    timers = {name: backend.load(one) for name, one in built.items()}
    reference = Anchor(_anchor_timer(backend, anchor), best_ms=anchor_ms)
    latencies = measure(
        timers,
        how.protocol,
        anchor=reference,
        seed=how.seed,
        state=backend.state,
        progress=progress,
    )
    return Measured(latencies, reference.best_ms)


@functools.lru_cache(maxsize=1)
def _anchor_timer(backend: Backend, built: Built) -> Timer:
    """Load the anchor once per process."""
    return backend.load(built)
