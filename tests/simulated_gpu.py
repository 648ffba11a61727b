"""How does a test get a machine with a GPU and TensorRT, in this process and in its workers?

    with simulated_gpu("10.16.0.72") as gpu:
        ...                      # torch.cuda, pynvml and `import tensorrt` are there; run anything
        print(gpu.told())        # every call with its count, in the order of the first ones

or, in a whole test module, a fixture that yields it. What the code under test asks TensorRT and
CUDA for is checked, see :mod:`simulated_tensorrt` and :mod:`simulated_cuda`; a wrong use raises
`Misuse`, an unknown name or argument AttributeError or TypeError. Processes that start meanwhile
(workers by forkserver or spawn, `subprocess`) import `sitecustomize.py` of this folder and have the
same GPU, each with a state of its own; with `log`, their calls are written there too.

Tracing for ONNX, training and eager PyTorch happen without the GPU, as they need real tensors:
`torch.onnx.export` runs with everything put back, and `search`, `adapt` and whatever is called
`Torch...` are told that there is no GPU. `with gpu.absent():` takes it away from any other part of
a test.
"""

import contextlib
import importlib
import json
import multiprocessing.forkserver
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VARIABLE = "ADAPT_SIMULATED_GPU"  # the arguments, for processes that start meanwhile


class Simulation:
    """A simulated GPU with TensorRT, which can be put in place and taken away.

    Args:
        release: One of :data:`simulated_tensorrt.VERSIONS`.
        mig: Whether the process sees a MIG slice of the GPU.
        nvml: Whether there is a management library.
        fused: Whether the engine inspector sees one node in the place of all layers.
        capturable: Whether engines can be captured in CUDA graphs.
        log: Folder to which every process writes its calls.

    Attributes:
        cuda: State and calls of the GPU.
        trt: The TensorRT package.
    """

    def __init__(self, release: str, log: str | None = None, fused: bool = False, **gpu: bool):
        import simulated_tensorrt
        from simulated_cuda import Cuda

        self.cuda = Cuda(**gpu)
        self.trt: Any = simulated_tensorrt.tensorrt_module(release, self.cuda, fused=fused)
        if log is not None:
            self._record_in(Path(log))
        self._replaced: list[tuple[Any, str, Any]] = []
        self._start, self._readings = time.perf_counter(), 0

    def _clock(self) -> float:
        """Return virtual seconds, so that no timing depends on how busy this machine is.

        Every reading takes a microsecond: whoever waits for a moment gets there.
        """
        self._readings += 1
        return self._start + self.cuda.now_ms / 1000 + self._readings * 1e-6

    def _record_in(self, folder: Path) -> None:
        files: dict[int, int] = {}  # by process: one may be a fork of the server of workers
        here = self.cuda.calls.append

        def record(name: str) -> None:
            here(name)
            pid = os.getpid()
            if pid not in files:
                files[pid] = os.open(
                    folder / f"{pid}.calls", os.O_CREAT | os.O_APPEND | os.O_WRONLY
                )
            os.write(files[pid], f"{name}\n".encode())

        self.cuda.record = record

    def told(self) -> str:
        """Return the calls of this process: each with its count, in the order of the first ones."""
        return told(self.cuda.calls)

    def install(self) -> None:
        """Put the GPU in place."""
        import pynvml
        import torch
        import torch.onnx
        from simulated_cuda import empty_on, nvml_members, torch_members

        trace = torch.onnx.export
        for name, member in torch_members(self.cuda).items():
            self._replace(torch.cuda, name, member)
        for name, member in nvml_members(self.cuda).items():
            self._replace(pynvml, name, member)
        self._replace(torch, "empty", empty_on(self.cuda, torch.empty))
        self._replace(torch.version, "cuda", "13.0")
        self._replace(time, "perf_counter", self._clock)

        def export(*arguments: Any, **options: Any) -> Any:
            with self.absent():
                return trace(*arguments, **options)

        self._replace(torch.onnx, "export", export)

    def remove(self) -> None:
        """Take the GPU away."""
        while self._replaced:
            owner, name, member = self._replaced.pop()
            setattr(owner, name, member)

    @contextlib.contextmanager
    def absent(self) -> Iterator[None]:
        """Take the GPU away for a while."""
        self.remove()
        try:
            yield
        finally:
            self.install()

    def _replace(self, owner: Any, name: str, member: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, member)


def told(calls: list[str]) -> str:
    """Return each call with its count, in the order of the first ones."""
    return "\n".join(f"{number:7} {name}" for name, number in Counter(calls).items())


@contextlib.contextmanager
def simulated_gpu(
    release: str = "10.16.0.72", *, log: Path | None = None, **options: bool
) -> Iterator[Simulation]:
    """Have a GPU with this TensorRT here and in processes that start meanwhile.

    Args:
        release: One of :data:`simulated_tensorrt.VERSIONS`.
        log: Folder to which every process writes its calls, in `<process id>.calls`.
        options: See :class:`Simulation`: `mig`, `nvml`, `fused`, `capturable`.
    """
    arguments = {"release": release, "log": log and str(log), **options}
    from bench.latency.nvml import nvml  # here, since every process imports this file

    gpu = Simulation(**arguments)
    here = str(Path(__file__).parent)
    environment = {
        VARIABLE: json.dumps(arguments),
        "PYTHONPATH": os.pathsep.join(
            (here, str(Path(here).parent), os.environ.get("PYTHONPATH", ""))
        ),
    }
    _stop_forkserver()
    with _environment(environment), _modules(gpu.trt):
        gpu.install()
        nvml.cache_clear()
        try:
            yield gpu
        finally:
            gpu.remove()
            nvml.cache_clear()
            _stop_forkserver()


def install_from_environment() -> None:
    """Put the GPU in place for good, if the process that started this one has one."""
    server_of_resources = "resource_tracker" in " ".join(sys.orig_argv)
    if VARIABLE in os.environ and not server_of_resources:
        gpu = Simulation(**json.loads(os.environ[VARIABLE]))
        sys.modules[gpu.trt.__name__] = gpu.trt
        gpu.install()


def _stop_forkserver() -> None:
    """Let the next worker come from a new server, with the environment of then."""
    server: Any = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server._stop()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _modules(trt: Any) -> Iterator[None]:
    """Let `import tensorrt` find a package, and Polygraphy begin anew with it."""

    def concerned() -> dict[str, Any]:
        other = ("tensorrt", "tensorrt_rtx", "polygraphy")
        return {n: m for n, m in sys.modules.items() if n.split(".")[0] in other}

    before = concerned()
    for name in before:
        del sys.modules[name]
    absent = "tensorrt_rtx" if trt.__name__ == "tensorrt" else "tensorrt"
    sys.modules.update({trt.__name__: trt, absent: None})  # type: ignore[dict-item]
    try:
        yield
    finally:
        for name in concerned():
            del sys.modules[name]
        sys.modules.update(before)
        importlib.invalidate_caches()
