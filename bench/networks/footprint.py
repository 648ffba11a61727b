"""How long does a file take to load, and how much memory to run? (in processes of its own)"""

import contextlib
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pebble import ProcessExpired, ProcessPool

from adapt.command_line import warn
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.parent import end_with_parent
from bench.latency.nvml import nvml
from bench.latency.workers import process_context
from bench.peers.runner import open_detector
from export.engine.execution import EngineExecution
from export.run.inference import Array
from export.run.onnx_session import PROVIDERS, file_session

PROCESSES = 3  # one after the other; one alone may meet a busy machine
CALLS = 5  # after which a runtime's pools of memory have grown
SECONDS = 600.0  # time limit of a process
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Footprint:
    """What a file takes, in a process that does nothing but load and run it.

    Attributes:
        load_ms: Time from opening the file until it is ready to run, its optimisation by the
            runtime included, the median of the processes. The runtime has been started before,
            and the system may have the file in memory.
        host_mb: By how many 10^6 bytes the resident memory of such a process grew at its highest,
            from before the file is opened until after the calls; the largest of the processes.
            None where the system does not tell. What imports had freed is used again uncounted.
        process_mb: The whole process at its highest, Python and all libraries included.
        device_mb: By how much the used memory of the GPU grew meanwhile, as NVML tells it; None on
            a processor. What other programs allocate at that time counts too.
    """

    load_ms: float
    host_mb: float | None
    process_mb: float | None
    device_mb: float | None

    @classmethod
    def of(cls, processes: Sequence["Footprint"]) -> "Footprint":
        """Summarise several processes."""
        return cls(
            median(one.load_ms for one in processes),
            _largest([one.host_mb for one in processes]),
            _largest([one.process_mb for one in processes]),
            _largest([one.device_mb for one in processes]),
        )


def footprint(runtime: str, artifact: Path, threads: int, images: Array) -> Footprint | None:
    """Load and run a file in processes of its own; None, and a warning, if they fail.

    Args:
        runtime: Which runtime.
        artifact: The file.
        threads: CPU threads of one inference.
        images: uint8 ``[B, 3, H, W]`` of one call.
    """
    context = process_context(__name__)
    with ProcessPool(1, max_tasks=1, context=context, initializer=end_with_parent) as pool:
        arguments = runtime, artifact, threads, images
        try:
            return Footprint.of(
                [
                    pool.schedule(measured_here, arguments, timeout=SECONDS).result()
                    for _ in range(PROCESSES)
                ]
            )
        except (AdaptError, ProcessExpired, RuntimeError, MemoryError, TimeoutError) as error:
            warn(f"load time and memory of {artifact} are not known: {error}")
            return None


def measured_here(runtime: str, artifact: Path, threads: int, images: Array) -> Footprint:
    """Load and run a file in this process; arguments as :func:`footprint`."""
    if runtime in PROVIDERS:
        importlib.import_module("onnxruntime")  # else its import would count
    memory, used_mb = PeakMemory(), _device_used_mb()
    with open_detector(runtime, artifact, threads) as runner:
        call = runner.bind(images)
        for _ in range(CALLS):
            call()
        on_gpu = runner.describe()["device"] != "cpu"
        now_mb = _device_used_mb() if on_gpu else None
    device_mb = None if now_mb is None or used_mb is None else now_mb - used_mb
    grown_mb, peak_mb = memory.grown_mb, memory.peak_mb
    return Footprint(_load_ms(runtime, artifact, threads), grown_mb, peak_mb, device_mb)


def _load_ms(runtime: str, artifact: Path, threads: int) -> float:
    """Load a file into a runtime that has started already, and nothing else; return how long."""
    start = time.perf_counter()
    if runtime in PROVIDERS:
        file_session(runtime, artifact, threads)
    elif runtime == "torch":
        load_detector(artifact)
    else:
        EngineExecution.open(artifact)
    return (time.perf_counter() - start) * 1000


class PeakMemory:
    """How far the resident memory of this process rises from now on."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not Linux, or not allowed
            _RESET.write_text("5")  # the peak so far is forgotten: imports reach higher than models
        self._before_mb = _status_mb("VmRSS")

    @property
    def peak_mb(self) -> float | None:
        """Its highest, in 10^6 bytes; None where the system does not tell."""
        # Not getrusage's maximum, which may be that of the process that this one was forked from.
        return _status_mb("VmHWM")

    @property
    def grown_mb(self) -> float | None:
        """By how much that exceeds what it was at first."""
        peak = self.peak_mb
        return None if peak is None or self._before_mb is None else peak - self._before_mb


def _status_mb(name: str) -> float | None:
    """Return a size that Linux tells of this process, in 10^6 bytes."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(sizes[0]) * 1024 / 1e6 if sizes else None


def _device_used_mb() -> float | None:
    gpu = nvml()
    memory = gpu.read("nvmlDeviceGetMemoryInfo", gpu.gpu)
    return None if memory is None else memory.used / 1e6


def _largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None
