"""Training on a CPU reuses the memory it frees, and gives it back at the end."""

import ctypes
import multiprocessing
import platform
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from search.train.heap import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, freed_memory_kept

CPU = torch.device("cpu")
MB = 10**6


def step() -> int:
    """Hold 240 MB at once, as a training step does, free the oldest first; return page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(5 * MB) for _ in range(12)]
    kept.reverse()  # lists free from their end
    kept.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def steps() -> tuple[int, list[int], int, int]:
    """Return page faults before, of each step, and resident bytes before and after the return."""
    libc = ctypes.CDLL(None)
    for threshold in M_MMAP_THRESHOLD, M_TRIM_THRESHOLD:
        libc.mallopt(threshold, 128 * 1024)  # where glibc starts; its own adjustment ends here
    usual = [step() for _ in range(3)][-1]
    with freed_memory_kept(CPU):
        faults = [step() for _ in range(12)]
        during = resident()
    return usual, faults, during, resident()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_one_step_serves_the_next_and_is_returned_at_the_end() -> None:
    # In a process of its own: the first steps still grow the heap, and in one that other tests
    # left in pieces many of them do.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as process:
        usual, faults, during, after = process.submit(steps).result()
    pages = 240 * MB / resource.getpagesize()
    assert usual > pages / 2
    assert faults[-1] < pages / 50
    assert after < during - 100 * MB


def test_nothing_happens_where_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    with freed_memory_kept(torch.device("cuda")):
        pass


def test_another_c_library_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory_kept(CPU):
        pass
