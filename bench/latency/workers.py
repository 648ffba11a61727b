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
from bench.latency.backend import ANCHOR, Built, Subject, Target
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


class Workers:
    """Builds and measures subjects on a target; a context manager.

    Args:
        target: Where.
        protocol: How much is measured.
        seed: Seed of the order of measurement.
        build_jobs: Processes that build at once; only isolated targets have any.
        anchor_ms: Fastest latency of the anchor so far, under the same conditions.
        build_seconds: Time limit of one build.
        measure_seconds: Time limit of the measurement of one subject.

    Attributes:
        anchor_ms: Fastest latency of the anchor so far.
    """

    def __init__(
        self,
        target: Target,
        protocol: Protocol,
        *,
        seed: int = 0,
        build_jobs: int = 1,
        anchor_ms: float = float("inf"),
        build_seconds: float = BUILD_SECONDS,
        measure_seconds: float = MEASURE_SECONDS,
    ) -> None:
        self.target, self.protocol, self.seed = target, protocol, seed
        self.anchor_ms = anchor_ms
        self._build_jobs = build_jobs
        self._limits = build_seconds, measure_seconds
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
        total = len(subjects) * (1 + self.protocol.rounds)
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
        if self._anchor is None:
            self._anchor = self._call("build", self._limits[0], self.target.build, ANCHOR)
        if not self.target.isolated:
            for name, subject in subjects.items():
                yield name, self.target.build(subject)
            return
        pool = self._pool("build", self._build_jobs)
        futures = {
            name: pool.schedule(self.target.build, (subject,), timeout=self._limits[0])
            for name, subject in subjects.items()
        }
        for name, future in futures.items():
            yield name, _outcome(future)

    def _measure(
        self, built: Mapping[str, Built], progress: Progress
    ) -> dict[str, Latency | Failure]:
        limit = self._limits[1] * (1 + len(built))
        told = (progress,) if not self.target.isolated else ()  # no call crosses processes
        arguments = self.target, self._anchor, self.anchor_ms, dict(built), self.protocol, self.seed
        try:
            found = self._call("measure", limit, _measure_chunk, *arguments, *told)
        except AdaptError as error:
            if not self.target.isolated:
                raise
            self._restart("measure")  # a CUDA error would fail all that follows
            if len(built) == 1:
                return dict.fromkeys(built, Failure(str(error)))
            alone = [self._measure({name: one}, progress) for name, one in built.items()]
            return {name: result for results in alone for name, result in results.items()}
        self.anchor_ms = found.anchor_ms
        return dict(found.latencies)

    def _call(self, pool: str, seconds: float, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function, in a process of its own if the target is isolated."""
        if not self.target.isolated:
            return work(*arguments)
        jobs = self._build_jobs if pool == "build" else 1
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
    target: Target,
    anchor: Built,
    anchor_ms: float,
    built: Mapping[str, Built],
    protocol: Protocol,
    seed: int,
    progress: Progress = silent,
) -> Measured:
    timers = {name: target.load(one) for name, one in built.items()}
    reference = Anchor(_anchor_timer(target, anchor), best_ms=anchor_ms)
    latencies = measure(
        timers, protocol, anchor=reference, seed=seed, state=target.state, progress=progress
    )
    return Measured(latencies, reference.best_ms)


@functools.lru_cache(maxsize=1)
def _anchor_timer(target: Target, built: Built) -> Timer:
    """Load the anchor once per process."""
    return target.load(built)
