"""How does each runtime build a unit or a detector, and time it? (one backend per library)

A backend is one runtime in one precision on one device. It is a small value that can be sent to
other processes; what it builds and loads lives there.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from adapt.cost.table import Conditions
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from adapt.runtime import Precision, allow_tf32, usual_tail
from bench.latency.onnx_units import TENSORRT_LIGHT, onnx_model, random_inputs
from bench.latency.provenance import (
    DeviceState,
    Machine,
    cpu_machine,
    cpu_state,
    gpu_machine,
    gpu_state,
)
from bench.latency.subject import ANCHOR, Subject
from bench.latency.timing import PROTOCOL, Call, Sample, Timer, wall_timer
from bench.latency.torch_units import torch_call
from export.engine.build import build_plan
from export.engine.configure import BuildOptions
from export.engine.installed import load_tensorrt
from export.graph.precision import int8_for, rest_precision
from export.run.onnx_session import PROVIDERS, bound_call, ort_session

# Between two CUDA events at least: they resolve 0.5 us, and a launch may idle the GPU for 10.
INTERVAL_MS = 1.0
MOST_RUNS = 500  # in one such interval
STILL_LONG = 0.8  # share of it below which there are too few
# Not PROTOCOL: units stand between other light convolutions, and one launch runs them many times.
TENSORRT_PROTOCOL = 3
ZERO_POINTS_PROTOCOL = 4  # of int8 on a processor, which was quantised for TensorRT before
Built = Any  # what a backend builds in one process and loads in another: bytes, or the subject


class Backend(Hashable, Protocol):
    """Builds subjects and times them on one runtime.

    Attributes:
        runtime: Name of the runtime on the command line.
        precision: Precision of weights and feature maps.
        batch: Images per call.
        threads: Threads of a CPU runtime.
        isolated: Whether builds and measurements run in processes of their own, because they may
            crash or hang, as on a GPU.
    """

    @property
    def runtime(self) -> str: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102
    @property
    def batch(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102
    @property
    def isolated(self) -> bool: ...  # noqa: D102

    def check(self) -> None:
        """Raise an :class:`AdaptError` if the backend cannot measure on this machine."""

    def version(self) -> str:
        """Return the version of the runtime's library."""

    def machine(self) -> Machine:
        """Return the device and what influences it."""

    def build(self, subject: Subject) -> Built:
        """Do the work during which others may use the device; the result is picklable."""

    def load(self, built: Built) -> Timer:
        """Make what was built ready to be timed on the device."""

    def state(self) -> DeviceState:
        """Read clock, temperature and throttling."""


def conditions(backend: Backend, size: InputSize) -> Conditions:
    """Return the conditions under which a backend measures on this machine.

    Raises:
        AdaptError: If it cannot, or the input is no letterbox.
    """
    if size != size.fixed():
        fixed = size.fixed()
        raise AdaptError(
            f"units are measured at a fixed input size, got {size.resize} {size.height}x"
            f"{size.width}; use the letterbox {fixed.height}x{fixed.width}"
        )
    backend.check()
    machine = backend.machine()
    return Conditions(
        runtime=backend.runtime,
        precision=backend.precision,
        batch=backend.batch,
        threads=backend.threads,
        device=machine.device,
        height=size.height,
        width=size.width,
        runtime_version=backend.version(),
        protocol=_protocol(backend),
        cores=machine.cores,
        governor=machine.governor,
        driver=machine.driver,
        cuda=machine.cuda,
        power_limit_w=machine.power_limit_w,
        tail=usual_tail(backend.runtime),
    )


def _protocol(backend: Backend) -> int:
    if isinstance(backend, TensorRTBackend):
        return TENSORRT_PROTOCOL
    zero_points = (backend.runtime, backend.precision) == ("ort-cpu", "int8")
    return ZERO_POINTS_PROTOCOL if zero_points else PROTOCOL


def open_backend(
    runtime: str,
    *,
    precision: Precision = "fp32",
    batch: int = 1,
    threads: int = 1,
    timing_cache: Path | None = None,
) -> Backend:
    """Return the backend of a runtime; threads count on a CPU only.

    Args:
        runtime: One of ``ort-cpu``, ``ort-cuda``, ``tensorrt``, ``tensorrt-rtx``, ``torch``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        batch: Images per call.
        threads: Threads of a CPU runtime.
        timing_cache: File in which TensorRT builds share the timings of tactics.

    Raises:
        AdaptError: If a value is out of range.
    """
    for name, value in (("threads", threads), ("batch", batch)):
        if value < 1:
            raise AdaptError(f"{name} must be at least 1, got {value}")
    match runtime:
        case "ort-cpu" | "ort-cuda":
            return OrtBackend(runtime, precision, batch, threads if runtime == "ort-cpu" else 0)
        case "tensorrt" | "tensorrt-rtx":
            return TensorRTBackend(runtime, precision, batch, timing_cache)
        case "torch":
            return TorchBackend(precision, batch, 0 if torch.cuda.is_available() else threads)
    known = ", ".join(("torch", *PROVIDERS, "tensorrt", "tensorrt-rtx"))
    raise AdaptError(f"runtime must be one of {known}, got {runtime!r}")


@dataclass(frozen=True)
class OrtBackend:
    """ONNX Runtime with its CPU or CUDA provider."""

    runtime: str
    precision: Precision = "fp32"
    batch: int = 1
    threads: int = 1

    @property
    def isolated(self) -> bool:
        """CUDA errors outlive the call that caused them."""
        return self.runtime == "ort-cuda"

    def check(self) -> None:
        """Open a session; see :meth:`Backend.check`."""
        ort_session(self.runtime, onnx_model(ANCHOR), max(self.threads, 1))

    def version(self) -> str:
        """Return the version of ONNX Runtime."""
        for name in ("onnxruntime-gpu", "onnxruntime"):
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        raise AdaptError("ONNX Runtime is not installed; run `pip install onnxruntime`")

    def machine(self) -> Machine:
        """Return the processor or the GPU."""
        return cpu_machine() if self.runtime == "ort-cpu" else _current_gpu()

    def build(self, subject: Subject) -> bytes:
        """Return the ONNX model."""
        tail = usual_tail(self.runtime)
        how: dict[str, Any] = {"batch": self.batch, "precision": self.precision, "tail": tail}
        return onnx_model(subject, **how, library=int8_for(self.runtime))

    def load(self, built: bytes) -> Timer:
        """Open a session, as the runner of deployed detectors does."""
        session = ort_session(self.runtime, built, max(self.threads, 1))
        return wall_timer(bound_call(session, random_inputs(built), self.runtime))

    def state(self) -> DeviceState:
        """Return the state of the processor or the GPU."""
        return cpu_state() if self.runtime == "ort-cpu" else gpu_state()


@dataclass(frozen=True)
class TensorRTBackend:
    """TensorRT 10, TensorRT 11 or TensorRT-RTX: one engine each, run as a CUDA graph."""

    runtime: str
    precision: Precision = "fp32"
    batch: int = 1
    timing_cache: Path | None = None
    threads: int = 0
    isolated: bool = True

    @property
    def flavour(self) -> str:
        """Name of the Python package."""
        return self.runtime.replace("-", "_")

    def check(self) -> None:
        """Look for TensorRT and a GPU; see :meth:`Backend.check`."""
        load_tensorrt(self.flavour)
        if not torch.cuda.is_available():
            raise AdaptError(
                f"runtime {self.runtime} builds engines here but needs an NVIDIA GPU to measure "
                "them, and this machine has none; run `adapt profile` on the GPU's machine, or "
                "choose runtime ort-cpu"
            )

    def version(self) -> str:
        """Return the version of TensorRT."""
        return str(load_tensorrt(self.flavour).__version__)

    def machine(self) -> Machine:
        """Return the GPU."""
        return _current_gpu()

    def build(self, subject: Subject) -> bytes:
        """Return the serialised engine."""
        tail = usual_tail(self.runtime)
        model = onnx_model(
            subject,
            batch=self.batch,
            precision=self.precision,
            rest=rest_precision(self.runtime, self.precision),
            tail=tail,
            light=TENSORRT_LIGHT,
        )
        options = BuildOptions(flavour=self.flavour, timing_cache=self.timing_cache)
        return build_plan(model, str(subject), options).plan

    def load(self, built: bytes, least_ms: float = INTERVAL_MS) -> Timer:
        """Load an engine and capture as many runs as take so long in one CUDA graph."""
        from export.engine.execution import EngineExecution

        engine = EngineExecution(load_tensorrt(self.flavour), built, "a unit's engine")
        engine.feed_noise()
        return cuda_timer(engine.replay, lambda: engine.stream, least_ms)

    def state(self) -> DeviceState:
        """Return the state of the GPU."""
        return gpu_state()


@dataclass(frozen=True)
class TorchBackend:
    """Eager PyTorch, on the GPU where there is one."""

    precision: Precision = "fp32"
    batch: int = 1
    threads: int = 1
    runtime: str = "torch"

    @cached_property
    def device(self) -> torch.device:
        """The current GPU, or the processor."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def isolated(self) -> bool:
        """CUDA errors outlive the call that caused them."""
        return self.device.type == "cuda"

    def check(self) -> None:
        """Refuse what eager PyTorch does not do; see :meth:`Backend.check`."""
        if self.precision == "int8" or (self.precision == "fp16" and self.device.type == "cpu"):
            raise AdaptError(
                f"eager PyTorch does not run {self.precision} detectors on {self.device}; choose "
                "--precision fp32, or another runtime"
            )

    def version(self) -> str:
        """Return the version of PyTorch."""
        return torch.__version__

    def machine(self) -> Machine:
        """Return the processor or the GPU."""
        return cpu_machine() if self.device.type == "cpu" else _current_gpu()

    def build(self, subject: Subject) -> Subject:
        """Return the subject itself: :meth:`load` makes the module in the process that runs it."""
        return subject

    def load(self, built: Subject) -> Timer:
        """Make a module with random weights and a random input."""
        dtype = torch.half if self.precision == "fp16" else torch.float32
        call = torch_call(built, self.batch, self.device, dtype)
        if self.device.type == "cuda":
            allow_tf32(False, False)  # for good: this process does nothing but measure
            return cuda_timer(lambda runs: _repeated(call, runs), torch.cuda.current_stream)
        return wall_timer(_on_threads(call, self.threads))

    def state(self) -> DeviceState:
        """Return the state of the processor or the GPU."""
        return cpu_state() if self.device.type == "cpu" else gpu_state()


def cuda_timer(
    repeat: Callable[[int], Call], stream: Callable[[], Any], least_ms: float = INTERVAL_MS
) -> Timer:
    """Return a timer of work on a CUDA stream: the mean of many runs between two events.

    Args:
        repeat: Makes the call that enqueues a number of runs, with one launch where that can be.
        stream: Returns the stream that such a call enqueues on.
        least_ms: How long the runs take together at least.
    """
    runs, interval = _long_enough(repeat, stream, least_ms)

    def sample() -> Sample:
        nonlocal runs, interval
        elapsed_ms = interval()
        # An idle GPU lowers its clock. Runs that were counted then are too few once it has risen.
        if elapsed_ms < STILL_LONG * least_ms and runs < MOST_RUNS:
            runs, interval = _long_enough(repeat, stream, least_ms, runs)
            elapsed_ms = interval()
        return Sample(elapsed_ms / runs, elapsed_ms)

    return sample


def _long_enough(
    repeat: Callable[[int], Call], stream: Callable[[], Any], least_ms: float, runs: int = 1
) -> tuple[int, Callable[[], float]]:
    """Return how many runs take so long now, and what returns the milliseconds they take."""
    while True:
        interval = _interval_timer(repeat(runs), stream())
        interval()  # the first runs allocate and load kernels
        elapsed_ms = interval()
        if elapsed_ms >= least_ms or runs >= MOST_RUNS:
            return runs, interval
        enough = math.ceil(1.1 * runs * least_ms / max(elapsed_ms, 1e-3))
        runs = min(MOST_RUNS, max(runs + 1, enough))


def _interval_timer(call: Call, stream: Any) -> Callable[[], float]:
    """Return what enqueues a call between two events and returns the milliseconds between them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def interval() -> float:
        with torch.cuda.stream(stream):
            start.record()
            call()
            end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return interval


def _repeated(call: Call, times: int) -> Call:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def _current_gpu() -> Machine:
    return gpu_machine(torch.cuda.get_device_name())


def _on_threads(call: Call, threads: int) -> Call:
    """Return a call that computes with this many CPU threads."""

    def run() -> None:
        # Checked at every call: the number belongs to the process, and others set it too.
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        call()

    return run
