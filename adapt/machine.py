"""Which processor does this machine have, and is it busy?"""

import os
import platform
from pathlib import Path

BUSY = 0.75  # programs that compute, per core
ESTIMATED = "estimated times are too long; estimate again when it is quiet"
MEASURED = "latencies measured now may be too long and rank badly; wait until it is quiet"


def processor_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
