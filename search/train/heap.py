"""How does training on a CPU reuse freed memory, instead of getting it from the system anew?"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of glibc's malloc.h, mallopt(3).
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
USUAL_TRIM_THRESHOLD = 2 * LARGEST_MMAP_THRESHOLD  # where its own adjustment ends
TRIM_THRESHOLD = 2**30


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep up to 1 GiB of freed memory in the process while training on a CPU.

    PyTorch frees the feature maps of a step one by one, glibc returns them to the system, and the
    next step pays a page fault for every 4 KiB that it gets again: up to 30 % of an architecture
    step on a virtual machine. The peak memory of a search stays the same, or rises somewhat where
    the heap fragments. At the end all freed memory is returned to the system.
    Nothing happens with another C library, or where a GPU computes.

    Args:
        device: Where the training computes.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM_THRESHOLD)
        libc.malloc_trim(0)
