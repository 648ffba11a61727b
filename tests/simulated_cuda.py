"""A GPU without a GPU: streams, events, graphs and memory as CUDA orders them, and NVML's readings.

Work on a stream is queued and runs when somebody waits for it. Time is virtual: it passes only
while queued work runs. Memory has addresses that are never used again, so work on freed memory is
noticed, and so is work on memory that another stream may still be working on. What an engine
computes is computed when somebody looks, so that a thousand replays cost as much as one.

:mod:`simulated_gpu` installs it.
"""

import contextlib
import itertools
import math
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pynvml
import torch

NAME, CAPABILITY = "NVIDIA A100-SXM4-40GB", (8, 0)
GPU_UUID, MIG_UUID = "5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"

# Training and eager PyTorch see no GPU: their tensors are real ones.
ON_THE_PROCESSOR = ("adapt.", "search.", "torch.")


class Misuse(AssertionError):
    """The GPU was used in a way that fails, races or gives wrong numbers on a real one."""


class Memory:
    """What one tensor has of the GPU's memory."""

    def __init__(self, data: torch.Tensor, address: int) -> None:
        self.data, self.address = data, address
        self.busy: set[int] = set()  # streams whose work on it may not be complete


class Cuda:
    """The state of a GPU as one process sees it.

    Args:
        mig: Whether the process sees a MIG slice of the GPU.
        nvml: Whether there is a management library.
        capturable: Whether engines can be captured in CUDA graphs.

    Attributes:
        calls: Names of all calls, in their order.
        now_ms: Virtual time.
        nvml_inits: How often the management library was initialised.
        nvml_ready: How often more than shut down; it outlives an absence of the GPU.
        generator_lost: Whether PyTorch's generator is still in a capture that failed.
        slowdown: How much longer engines take than at the highest clock.
        launch_ms: How long the GPU waits for the launch of a graph.
    """

    def __init__(self, *, mig: bool = False, nvml: bool = True, capturable: bool = True) -> None:
        self.name = f"{NAME} MIG 3g.20gb" if mig else NAME
        self.mig, self.has_nvml, self.capturable = mig, nvml, capturable
        self.calls: list[str] = []
        self.record: Callable[[str], None] = self.calls.append
        self.now_ms = 0.0
        self.nvml_inits = self.nvml_ready = 0
        self.queues: dict[int, list[Callable[[], None]]] = {0: []}
        self.tensors: weakref.WeakValueDictionary[int, GpuTensor] = weakref.WeakValueDictionary()
        self.uncomputed: dict[int, Callable[[], None]] = {}
        self.capturing: Any = None
        self.generator_lost = False
        self.slowdown, self.launch_ms = 1.0, 0.0
        self.default = self.current = types.SimpleNamespace(cuda_stream=0)
        self.default.synchronize = lambda: self.wait(0)
        self._addresses = itertools.count(0x7F0000000000, 1 << 32)

    def allocate(self, data: torch.Tensor) -> "GpuTensor":
        """Return a tensor on the GPU with this content."""
        tensor = GpuTensor(self, Memory(data, next(self._addresses)))
        self.tensors[tensor.data_ptr()] = tensor
        return tensor

    def at(self, address: int, name: str, nbytes: int = 0) -> Memory:
        """Return the memory at an address, of at least so many bytes."""
        tensor = self.tensors.get(address)
        if tensor is None:
            raise Misuse(f"{name}: no memory at {address:#x}, or it was freed")
        memory = tensor.memory
        if memory.data.nbytes < nbytes:
            raise Misuse(f"{name}: {memory.data.nbytes} bytes of memory for {nbytes}")
        return memory

    def enqueue(self, stream: int, addresses: Iterable[int], work: Callable[[], None]) -> None:
        """Queue work that reads or writes the memory at some addresses; or capture it."""
        if stream not in self.queues:
            raise Misuse(f"no stream {stream:#x}")
        if self.capturing is not None:
            if self.capturing.stream.cuda_stream != stream:
                raise Misuse("work on another stream than the one that is captured")
            self.capturing.nodes.append((tuple(addresses), work))
            return
        for address in addresses:
            memory = self.at(address, "work")
            if memory.busy - {stream}:
                raise Misuse("another stream still works on this memory: synchronise before")
            memory.busy.add(stream)
        self.queues[stream].append(work)

    def wait(self, stream: int | None = None) -> None:
        """Run what is queued on one stream, or on all."""
        if self.capturing is not None:
            self.capturing.valid = False
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        for handle in list(self.queues) if stream is None else [stream]:
            queue, self.queues[handle] = self.queues[handle], []
            for work in queue:
                work()
            for tensor in self.tensors.values():
                tensor.memory.busy.discard(handle)

    def compute(self) -> None:
        """Compute what engines ran on, because somebody looks at it or changes an input."""
        todo, self.uncomputed = self.uncomputed, {}
        for work in todo.values():
            work()


class GpuTensor:
    """What a deployed detector does with a tensor on the GPU, and nothing else."""

    device = torch.device("cuda", 0)
    is_cuda = True

    def __init__(self, cuda: Cuda, memory: Memory) -> None:
        self._cuda, self.memory = cuda, memory
        self.shape, self.dtype = memory.data.shape, memory.data.dtype
        self.nbytes = memory.data.nbytes

    def data_ptr(self) -> int:
        return self.memory.address

    def is_floating_point(self) -> bool:
        return self.memory.data.is_floating_point()

    def numel(self) -> int:
        return self.memory.data.numel()

    def copy_(self, other: torch.Tensor) -> "GpuTensor":
        content = other.clone()
        assert content.shape == self.shape, (content.shape, self.shape)
        return self._write(lambda: self.memory.data.copy_(content))

    def normal_(self) -> "GpuTensor":
        if self._cuda.generator_lost:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        return self._write(self.memory.data.normal_)

    def zero_(self) -> "GpuTensor":
        return self._write(self.memory.data.zero_)

    def cpu(self) -> torch.Tensor:
        stream = self._cuda.current.cuda_stream
        self._cuda.enqueue(stream, [self.memory.address], self._cuda.compute)
        self._cuda.wait(stream)
        return self.memory.data.clone()

    def _write(self, change: Callable[[], Any]) -> "GpuTensor":
        def work() -> None:
            self._cuda.compute()  # from the content before
            change()

        self._cuda.enqueue(self._cuda.current.cuda_stream, [self.memory.address], work)
        return self


def torch_members(cuda: Cuda) -> dict[str, Any]:
    """Return what stands for members of ``torch.cuda``."""
    handles = itertools.count(0x1000, 0x10)

    class Stream:
        def __init__(self) -> None:
            cuda.record("cuda.Stream")
            self.cuda_stream = next(handles)
            cuda.queues[self.cuda_stream] = []

        def synchronize(self) -> None:
            cuda.record("cuda.Stream.synchronize")
            cuda.wait(self.cuda_stream)

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self._timing, self._at, self._stream = enable_timing, None, None

        def record(self, stream: Any = None) -> None:
            cuda.record("cuda.Event.record")
            self._at, self._stream = None, stream or cuda.current

            def mark() -> None:
                self._at = cuda.now_ms

            cuda.enqueue(self._stream.cuda_stream, (), mark)

        def synchronize(self) -> None:
            if self._stream is not None:
                cuda.wait(self._stream.cuda_stream)

        def elapsed_time(self, end: "Event") -> float:
            if not (self._timing and end._timing) or self._at is None or end._at is None:
                raise RuntimeError("CUDA error: both events must be timed, recorded and complete")
            return end._at - self._at

    class CUDAGraph:
        def __init__(self) -> None:
            self.nodes: list[tuple[tuple[int, ...], Callable[[], None]]] = []
            self.stream: Any = None
            self.valid = self.complete = False

        def replay(self) -> None:
            if not self.complete:
                raise RuntimeError("Called CUDAGraph::replay without a preceding capture.")
            cuda.record("cuda.CUDAGraph.replay")

            def wait_for_it() -> None:
                cuda.now_ms += cuda.launch_ms

            cuda.enqueue(cuda.current.cuda_stream, (), wait_for_it)
            for addresses, work in self.nodes:
                cuda.enqueue(cuda.current.cuda_stream, addresses, work)

    @contextlib.contextmanager
    def on(stream: Any) -> Iterator[None]:
        before, cuda.current = cuda.current, stream
        try:
            yield
        finally:
            cuda.current = before

    @contextlib.contextmanager
    def graph(
        graph: CUDAGraph,
        pool: Any = None,
        stream: Any = None,
        capture_error_mode: str = "global",
    ) -> Iterator[None]:
        cuda.record("cuda.graph")
        if stream is None or stream.cuda_stream == 0:
            raise Misuse("the default stream cannot be captured")
        if capture_error_mode != "thread_local":
            raise Misuse("other threads must not spoil the capture: capture_error_mode")
        cuda.wait()
        before, cuda.current = cuda.current, stream
        graph.stream, graph.valid, cuda.capturing = stream, True, graph
        try:
            yield
        finally:
            cuda.capturing = None
            if not graph.valid:  # as in PyTorch, this hides an exception and leaves the stream
                cuda.generator_lost = True
                raise RuntimeError("CUDA error: operation failed due to a previous error")
            cuda.current = before
            if not graph.nodes:
                raise Misuse("the graph is empty")
        graph.complete = True

    def properties(_: Any = None) -> types.SimpleNamespace:
        major, minor = CAPABILITY
        uuid = MIG_UUID if cuda.mig else GPU_UUID
        return types.SimpleNamespace(
            name=cuda.name, uuid=uuid, major=major, minor=minor, total_memory=40 << 30
        )

    def is_available() -> bool:
        asks = sys._getframe(1)
        module, function = asks.f_globals["__name__"], asks.f_code.co_qualname
        return not (module.startswith(ON_THE_PROCESSOR) or function.startswith("Torch"))

    def wait(_: Any = None) -> None:
        cuda.record("cuda.synchronize")
        cuda.wait()

    return {
        "is_available": is_available,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda _=None: cuda.name,
        "get_device_capability": lambda _=None: CAPABILITY,
        "get_device_properties": properties,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "mem_get_info": lambda _=None: (39 << 30, 40 << 30),
        "memory_allocated": lambda _=None: sum(t.nbytes for t in cuda.tensors.values()),
        "synchronize": wait,
        "current_stream": lambda _=None: cuda.current,
        "default_stream": lambda _=None: cuda.default,
        "stream": on,
        "graph": graph,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CUDAGraph,
    }


def empty_on(cuda: Cuda, empty: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Return what stands for ``torch.empty``."""

    def made(*size: Any, device: Any = None, **options: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return empty(*size, device=device, **options)
        cuda.record("torch.empty on cuda")
        # Fresh memory holds anything; what was never written must be noticed.
        data = empty(*size, **options)
        return cuda.allocate(data.fill_(math.nan if data.is_floating_point() else 77))

    return made


def nvml_members(cuda: Cuda) -> dict[str, Any]:
    """Return what stands for functions of ``pynvml``, as of a GPU, a MIG slice or no driver."""

    def init() -> None:
        if not cuda.has_nvml:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        cuda.nvml_ready += 1
        cuda.nvml_inits += 1

    def shutdown() -> None:
        _initialised()
        cuda.nvml_ready -= 1

    def _initialised() -> None:
        if not cuda.nvml_ready:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

    def told(value: Any, *, of_slices: bool = True) -> Callable[..., Any]:
        """Return a function that tells a value; NVML knows few of a MIG slice."""

        def function(*arguments: Any) -> Any:
            _initialised()
            if arguments[:1] == ("slice",) and not of_slices:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value

        return function

    def by_uuid(uuid: str) -> str:
        _initialised()
        known = {f"GPU-{GPU_UUID}": "gpu"} | ({f"MIG-{MIG_UUID}": "slice"} if cuda.mig else {})
        if uuid not in known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return known[uuid]

    def parent(handle: str) -> str:
        if handle != "slice":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return "gpu"

    gpu_only = {
        "nvmlDeviceGetClockInfo": 1410,
        "nvmlDeviceGetMaxClockInfo": 1410,
        "nvmlDeviceGetEnforcedPowerLimit": 400_000,
        "nvmlDeviceGetPowerManagementLimit": 400_000,
        "nvmlDeviceGetTemperature": 40,
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetComputeMode": 0,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
        "nvmlDeviceGetCurrentClocksEventReasons": 0,
        "nvmlDeviceGetMigMode": (int(cuda.mig), int(cuda.mig)),
    }
    return {
        "nvmlInit": init,
        "nvmlShutdown": shutdown,
        "nvmlSystemGetDriverVersion": told("580.65.06"),
        "nvmlSystemGetCudaDriverVersion": told(13000),
        "nvmlDeviceGetCount": told(1),
        "nvmlDeviceGetHandleByIndex": told("gpu"),
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": parent,
        "nvmlDeviceGetUUID": lambda handle: (
            f"MIG-{MIG_UUID}" if handle == "slice" else f"GPU-{GPU_UUID}"
        ),
        "nvmlDeviceGetName": lambda handle: cuda.name if handle == "slice" else NAME,
        "nvmlDeviceIsMigDeviceHandle": lambda handle: int(handle == "slice"),
        **{name: told(value, of_slices=False) for name, value in gpu_only.items()},
    }
