"""Which processor does this machine have, and is it busy?"""

import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
VNNI = frozenset(("avx512_vnni", "avx_vnni"))  # names of what multiplies and adds bytes in 32 bits
BUSY = 0.75  # programs that compute, per core
ESTIMATED = "estimated times are too long; estimate again when it is quiet"
MEASURED = "latencies measured now may be too long and rank badly; wait until it is quiet"


def processor_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_vnni() -> bool:
    """Return whether this is an x86-64 processor that adds products of bytes in 32 bits."""
    try:
        words = CPU_INFO.read_text(encoding="utf-8").split()
    except OSError:
        return False
    return platform.machine() == "x86_64" and not VNNI.isdisjoint(words)


def int8_saturates() -> bool:
    """Return whether sums of two products of bytes overflow: on x86-64 without VNNI."""
    return platform.machine() == "x86_64" and CPU_INFO.is_file() and not has_vnni()


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load_per_core() -> float:
    """Return how many programs computed in the last minute, per core; 0 where nobody counts."""
    return os.getloadavg()[0] / usable_cores() if hasattr(os, "getloadavg") else 0.0


def busy(consequence: str = ESTIMATED) -> str:
    """Say that times told now are too long; empty on a quiet machine.

    Args:
        consequence: What that spoils, and what to do.
    """
    load = load_per_core()
    if load < BUSY:
        return ""
    return (
        f"this machine is busy ({load:.1f} programs computed per core in the last minute), so that "
        f"{consequence}"
    )
