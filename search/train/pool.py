"""How do several trainings run side by side, one thread each, and report their progress?"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.managers import SyncManager
from queue import Empty
from typing import Any, Protocol, TypeVar

from adapt.parent import end_with_parent
from adapt.progress import Progress

REPORT_SECONDS = 1.0
SCALE = 1000  # parts into which a job's progress is divided


class Job(Protocol):
    """Work with a name; it must be picklable, and so must what does it."""

    @property
    def name(self) -> str:
        """Name in messages."""


AnyJob = TypeVar("AnyJob", bound=Job)


def run_jobs(
    jobs: Sequence[AnyJob],
    work: Callable[[AnyJob, Progress, Callable[[str], object]], object],
    at_once: int,
    progress: Progress,
    warn: Callable[[str], object],
) -> None:
    """Do all jobs, each in a process of its own with one thread.

    Args:
        jobs: What to do.
        work: Does one job; it is called with the job, a progress and a function for warnings.
        at_once: How many are done at the same time.
        progress: Told every second.
        warn: Called with every warning, and the name of its job.

    Raises:
        AdaptError: That of the first job that fails; those that run are finished first.
    """
    if not jobs:
        return
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    with _one_thread_each(), _manager(context) as manager:
        told = manager.Queue()
        workers = min(at_once, len(jobs))
        with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
            futures = [pool.submit(_do, work, job, number, told) for number, job in enumerate(jobs)]
            try:
                _watch(futures, jobs, told, progress, warn)
            except KeyboardInterrupt:
                # A terminal interrupts all processes of a command, but others this one only.
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _manager(context: BaseContext) -> SyncManager:
    manager = SyncManager(ctx=context)
    manager.start(end_with_parent)
    return manager


@contextmanager
def _one_thread_each() -> Iterator[None]:
    usual = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the libraries of the processes when they start
    try:
        yield
    finally:
        if usual is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = usual


def _do(work: Callable[..., object], job: Job, number: int, told: Any) -> None:
    import torch

    torch.set_num_threads(1)
    work(job, _Reporter(number, told), partial(_warn, number, told))


def _warn(number: int, told: Any, message: str) -> None:
    told.put((number, message))


class _Reporter:
    """Tells the main process now and then how far a job is."""

    def __init__(self, number: int, told: Any) -> None:
        self._number, self._told, self._last = number, told, 0.0

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        if time.monotonic() - self._last >= REPORT_SECONDS:
            self._last = time.monotonic()
            self._told.put((self._number, done / max(total, 1)))


def _watch(
    futures: Sequence["Future[None]"],
    jobs: Sequence[Job],
    told: Any,
    progress: Progress,
    warn: Callable[[str], object],
) -> None:
    shares = [0.0] * len(jobs)
    left = set(futures)
    while left:
        finished, left = wait(left, REPORT_SECONDS, FIRST_COMPLETED)
        for number, content in _drained(told):
            if isinstance(content, str):
                warn(f"{jobs[number].name}: {content}")
            else:
                shares[number] = content
        for future in finished:
            shares[futures.index(future)] = 1.0
            future.result()
        note = f"{len(jobs) - len(left)} of {len(jobs)} trainings"
        progress(int(sum(shares) * SCALE), len(jobs) * SCALE, note)


def _drained(told: Any) -> Iterator[tuple[int, Any]]:
    while True:
        try:
            yield told.get_nowait()
        except Empty:
            return
