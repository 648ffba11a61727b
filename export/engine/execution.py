"""How is a TensorRT engine loaded and run on a GPU?

PyTorch allocates the GPU's memory and streams. Every TensorRT name is checked against the API lists
of TensorRT 10, 11 and RTX; no GPU was at hand to run this file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.artifacts import check_header, parsing, read_json, typed
from adapt.errors import AdaptError
from export.engine.build import sidecar_path
from export.engine.installed import load_tensorrt, logger_of

DTYPES = {
    "float": torch.float32,
    "half": torch.float16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}


def read_plan_info(path: Path) -> dict[str, Any]:
    """Return the description that :func:`export.engine.build.build_engine` wrote beside an engine.

    Raises:
        AdaptError: If the engine or its description is missing or not written by ``adapt``.
    """
    if not path.is_file():
        raise AdaptError(f"engine {path} does not exist; `adapt export` builds it")
    content = check_header(read_json(sidecar_path(path), "engine description"), "engine", path)
    with parsing("engine description", sidecar_path(path), "build the engine again"):
        _ = [typed(str, content[name]) for name in ("flavour", "tensorrt_version", "target")]
        typed(dict[str, Any], content["onnx"])
    return content


class EngineExecution:
    """A loaded engine with an execution context and buffers of its inputs and outputs.

    Args:
        trt: The TensorRT package that built it.
        plan: The serialised engine.
        name: What the engine is called in errors.

    Attributes:
        buffers: Input and output tensors on the GPU by name. A free batch has its largest size
            until :meth:`feed` brings fewer images.
        outputs: Names of the outputs.
        stream: The CUDA stream it runs on.
        captured: Whether the last :meth:`replay` launches a CUDA graph; None before the first.
    """

    def __init__(self, trt: Any, plan: bytes, name: str) -> None:
        self._name, self._logger = name, logger_of(trt)
        self._engine = _deserialise(trt, plan, name)
        self._context = self._engine.create_execution_context()
        self._check(self._context is not None, "gets no memory to run in")
        self.stream = _new_stream()
        self.captured: bool | None = None
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in inputs]
        self.buffers: dict[str, Tensor] = {}
        self._allocate({name: self._largest_shape(name) for name in inputs})

    @classmethod
    def open(cls, path: Path) -> "EngineExecution":
        """Load an engine file.

        Raises:
            AdaptError: If it is missing, damaged, of another version or GPU, or there is no GPU.
        """
        info = read_plan_info(path)
        if not torch.cuda.is_available():
            raise AdaptError(
                f"engine {path} needs an NVIDIA GPU to run and this machine has none; copy it "
                f"with {sidecar_path(path).name} to one of the kind it was built for "
                f"({info['target']}), or run the .onnx file on ort-cpu"
            )
        trt = load_tensorrt(info["flavour"])
        check_fits(info, path, trt.__version__, torch.cuda.get_device_name(), _capability())
        return cls(trt, path.read_bytes(), f"engine {path}")

    def _largest_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape
        _, _, largest = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(largest)

    def _allocate(self, inputs: Mapping[str, tuple[int, ...]]) -> None:
        """Make buffers for inputs of these shapes, and for the outputs that follow from them."""
        for name, shape in inputs.items():
            accepted = self._context.set_input_shape(name, shape)
            self._check(accepted, f"does not take {name} of shape {shape}")
        for name in (*inputs, *self.outputs):
            dtype = DTYPES[self._engine.get_tensor_dtype(name).name.lower()]
            shape = tuple(self._context.get_tensor_shape(name))
            self.buffers[name] = torch.empty(shape, dtype=dtype, device="cuda")
            accepted = self._context.set_tensor_address(name, self.buffers[name].data_ptr())
            self._check(accepted, f"takes no buffer for {name}")

    def feed(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Copy all inputs to the GPU; of a free batch, any size up to the largest will do."""
        shapes = {name: array.shape for name, array in inputs.items()}
        if any(self.buffers[name].shape != shape for name, shape in shapes.items()):
            self._allocate(shapes)
        for name, array in inputs.items():
            self.buffers[name].copy_(torch.from_numpy(array))
        torch.cuda.synchronize()

    def feed_noise(self) -> None:
        """Fill every floating-point input with normally distributed values."""
        for name, buffer in self.buffers.items():
            if name not in self.outputs and buffer.is_floating_point():
                # Of the processor's generator: a capture that fails leaves the GPU's unusable.
                buffer.copy_(torch.randn(buffer.shape).to(buffer.dtype))
        torch.cuda.synchronize()

    def run(self) -> None:
        """Run on the content of the input buffers and wait for the outputs."""
        self._enqueue()
        self.stream.synchronize()

    def replay(self, times: int = 1) -> Callable[[], None]:
        """Return a call that launches the run on the inputs as they are shaped now.

        It launches one CUDA graph, or runs plainly if the engine cannot be captured, and does not
        wait for the outputs.

        Args:
            times: How often one launch runs the engine. A launch takes microseconds of Python and
                driver, as a small engine does.
        """
        self.run()  # TensorRT allocates on the first run, which a graph cannot hold
        graph = self._graph(times)
        self.captured = graph is not None
        if graph is None:
            return lambda: self._enqueue(times)
        # A CUDA graph holds addresses only: the call keeps engine and buffers alive.
        kept_alive = graph, self, dict(self.buffers)
        return lambda: kept_alive[0].replay()

    def _graph(self, times: int) -> torch.cuda.CUDAGraph | None:
        """Capture runs; None if that cannot be, as trtexec goes on without a graph."""
        if not self._capturable():
            return None
        graph = torch.cuda.CUDAGraph()
        # PyTorch leaves the current stream as it is in a capture when that fails; and what other
        # threads do, such as loading a module, is no reason to fail.
        with torch.cuda.stream(torch.cuda.current_stream()):
            try:
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    self._enqueue(times)
            except (AdaptError, RuntimeError):  # the second hides the first
                self.stream = _new_stream()
                return None
        return graph

    def _capturable(self) -> bool:
        """Ask TensorRT-RTX, which compiles and allocates while it runs; the others cannot tell."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.stream.cuda_stream))

    def capture(self) -> Callable[[], None]:
        """Return a call that launches the run as :meth:`replay` does and waits for the outputs."""
        replay = self.replay()

        def call() -> None:
            replay()
            torch.cuda.synchronize()

        return call

    def _enqueue(self, times: int = 1) -> None:
        self._logger.errors.clear()  # those of other engines explain nothing
        for _ in range(times):
            self._check(self._context.execute_async_v3(self.stream.cuda_stream), "does not run")

    def _check(self, done: bool, problem: str) -> None:
        if not done:  # TensorRT does not raise
            reasons = "; ".join(self._logger.errors) or "it gave no reason"
            raise AdaptError(f"{self._name} {problem} ({reasons}); build it again here")


def _new_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _capability() -> str:
    return "SM{}{}".format(*torch.cuda.get_device_capability())


def check_fits(
    info: Mapping[str, Any], path: Path, version: str, device: str, capability: str
) -> None:
    """Check that an engine was built by the TensorRT and for the GPU of this machine.

    Args:
        info: The engine's description.
        path: The engine.
        version: Installed version of the TensorRT that built it.
        device: Name of the GPU.
        capability: Its compute capability, such as ``SM80``.

    Raises:
        AdaptError: If it was not.
    """
    remedy = "build it again here with `adapt export --trt`"
    if info["tensorrt_version"] != version:
        raise AdaptError(
            f"engine {path} was built with {info['flavour']} {info['tensorrt_version']}, {version} "
            f"is installed; {remedy}"
        )
    if info["target"] not in (device, capability):
        raise AdaptError(
            f"engine {path} was built for {info['target']}, this GPU is {device} ({capability}); "
            f"{remedy}"
        )


def _deserialise(trt: Any, plan: bytes, name: str) -> Any:
    logger = logger_of(trt)
    logger.errors.clear()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # TensorRT does not raise
        raise AdaptError(
            f"{name} does not load on this GPU ({'; '.join(logger.errors)}); build it again here"
        )
    return engine
