"""Training on a CPU reuses the memory it frees, and gives it back at the end."""

import ctypes
import platform
import resource
from pathlib import Path

import pytest
import torch

from search.heap import freed_memory_kept

CPU = torch.device("cpu")
MB = 10**6


def step() -> int:
    """Hold 192 MB at once, as a training step does; return the page faults."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    kept = [torch.ones(4 * MB) for _ in range(12)]
    assert len(kept) == 12
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_one_step_serves_the_next_and_is_returned_at_the_end() -> None:
    with freed_memory_kept(CPU):
        faults = [step() for _ in range(4)]  # the heap settles in the first ones
        assert faults[-1] < 192 * MB / resource.getpagesize() / 50
        during = resident()
    assert resident() < during - 100 * MB


def test_nothing_happens_where_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    with freed_memory_kept(torch.device("cuda")):
        pass


def test_another_c_library_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with freed_memory_kept(CPU):
        pass
