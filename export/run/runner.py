"""Which runtime runs which detector file, and how does a file run there on images?"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet

from adapt.data.images import Fitting
from adapt.detector.file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from adapt.runtime import exact_fp32
from export.engine.execution import EngineExecution, read_plan_info
from export.graph.canvas import Canvas
from export.graph.detector import RawHeads
from export.graph.options import DETECTIONS, RAW_HEADS, ImageInput
from export.run.inference import (
    Array,
    ImageDetections,
    Runner,
    batch_detections,
    in_type,
    unit,
)
from export.run.onnx_session import PROVIDERS, bound_call, file_session
from export.run.pair import PairRunner, deployed_header, files_of, warn_if_smaller

ARTIFACTS = {  # what the files of a runtime end in
    "torch": ".safetensors",
    "ort-cpu": ".onnx",
    "ort-cuda": ".onnx",
    "tensorrt": ".plan",
    "tensorrt-rtx": ".plan",
}
RUNTIMES = tuple(ARTIFACTS)


def open_runner(runtime: str, artifact: Path, threads: int = 1) -> Runner:
    """Return the runner of an artifact; use it in a ``with`` statement.

    Of a detector that was exported for landscape and portrait images, both files are opened if they
    lie beside each other, whichever of the two is named; otherwise a warning says what is lost.

    Args:
        runtime: One of :data:`RUNTIMES`.
        artifact: File that ``adapt finetune`` (torch) or ``adapt export`` (the others) wrote.
        threads: CPU threads of one inference.

    Raises:
        AdaptError: If the runtime is unknown or not installed, or cannot run this artifact.
    """
    check_artifact(runtime, artifact)
    if threads < 1:
        raise AdaptError(f"threads must be at least 1, got {threads}")
    if runtime == "torch":
        return TorchRunner(artifact, threads)
    parts = [_open_file(runtime, file, threads) for file in files_of(artifact)]
    if len(parts) == 2:
        return PairRunner(*parts)
    warn_if_smaller(artifact)
    return parts[0]


def _open_file(runtime: str, artifact: Path, threads: int) -> Runner:
    if runtime in PROVIDERS:
        return OrtRunner(runtime, artifact, threads)
    return EngineRunner(runtime, artifact)


def usual_runtime(artifact: Path) -> str:
    """Return the runtime that runs such a file if none is named.

    Raises:
        AdaptError: If it is an engine that does not say what built it.
    """
    if artifact.suffix == ".plan":
        return _engine_runtime(read_plan_info(artifact))
    return "torch" if artifact.suffix == ".safetensors" else "ort-cpu"


def check_artifact(runtime: str, artifact: Path) -> None:
    """Check that a runtime exists and runs files of this kind.

    Raises:
        AdaptError: If not; says what to pass or choose instead.
    """
    if runtime not in ARTIFACTS:
        raise AdaptError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if artifact.suffix != ARTIFACTS[runtime]:
        fitting = [name for name, suffix in ARTIFACTS.items() if suffix == artifact.suffix]
        other = f" or choose runtime {' or '.join(fitting)}" if fitting else ""
        raise AdaptError(
            f"runtime {runtime} runs {ARTIFACTS[runtime]} files, got {artifact}; pass the "
            f"{ARTIFACTS[runtime]} file of this detector{other}"
        )


class TorchRunner(Runner):
    """Eager inference of torchvision's RetinaNet, what most people do by default.

    Args:
        artifact: The detector file.
        threads: CPU threads of one inference.
        device: Where to run; the current GPU by default, or the processor where there is none.
    """

    dynamic = True

    def __init__(
        self, artifact: Path, threads: int = 1, device: torch.device | None = None
    ) -> None:
        model, self.info = load_detector(artifact)
        self.fitting = Fitting.trained(self.info.input)
        self._device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device)
        self._threads = threads
        self._threads_before = torch.get_num_threads()
        self._fp32 = exact_fp32()

    def __enter__(self) -> Self:
        # PyTorch's number of threads belongs to the process, so it is restored on exit.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        self._fp32 = exact_fp32()
        self._fp32.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._fp32.__exit__(None, None, None)
        torch.set_num_threads(self._threads_before)

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in ``[B, 3, H, W]``; see :meth:`Runner.infer`."""
        detections = self._run(self._as_input(images))
        return [ImageDetections.from_torchvision(image) for image in detections]

    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        return torch_heads(self._model, images)

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        tensors, on_gpu = self._as_input(images), self._device.type == "cuda"

        def call() -> None:
            self._run(tensors)
            if on_gpu:
                torch.cuda.synchronize()

        return call

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads (0: the GPU does the work)."""
        on_gpu = self._device.type == "cuda"
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": 0 if on_gpu else self._threads,
        }

    def _as_input(self, images: Array) -> list[Tensor]:
        return list(torch.from_numpy(unit(images)).to(self._device))

    @torch.inference_mode()
    def _run(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        detections: list[dict[str, Tensor]] = self._model(images)
        return detections


@torch.inference_mode()
def torch_heads(model: RetinaNet, images: Array) -> dict[str, Array]:
    """Return the raw heads that PyTorch computes for uint8 images; see :meth:`Runner.heads`."""
    device = next(model.parameters()).device
    # Its own constants too: the mean and the deviation of images.
    heads = RawHeads(model).to(device)(torch.from_numpy(unit(images)).to(device))
    return {name: head.cpu().numpy() for name, head in zip(RAW_HEADS, heads, strict=True)}


class ExportedRunner(Runner):
    """What an ONNX file and an engine share: a header that fixes input, precision and tail."""

    def __init__(self, runtime: str, artifact: Path, header: dict[str, Any]) -> None:
        self.info = DetectorInfo.from_dict(header)
        self.precision, self.tail = header["precision"], header["tail"]
        self._runtime = runtime
        self._artifact = artifact
        self._input = ImageInput.of(self.info, header)
        self.fitting = Canvas.of(header).fitting
        self.batch, self.dynamic = self._input.shape[0], self._input.dynamic

    @abstractmethod
    def _outputs(self, images: Array, names: Sequence[str]) -> list[Array]:
        """Return these outputs of the graph for images in the shape and type of its input."""

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in ``[B, 3, H, W]``; see :meth:`Runner.infer`."""
        if self.tail == "none":
            raise AdaptError(
                f"{self._artifact} ends in raw heads (tail 'none') and detects nothing by itself; "
                "export it with tail 'tensor-nms' or 'onnx-nms'"
            )
        return batch_detections(*self._outputs(self._as_input(images), DETECTIONS))

    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        if self.tail != "none":
            raise AdaptError(f"{self._artifact} ends in detections; export it with tail 'none'")
        heads = self._outputs(self._as_input(images), RAW_HEADS)
        return dict(zip(RAW_HEADS, heads, strict=True))

    def _as_input(self, images: Array) -> Array:
        """Return uint8 images in the data type of the graph's input.

        Raises:
            AdaptError: If they have another shape.
        """
        if not self._input.fits(images.shape):
            raise AdaptError(
                f"{self._artifact} takes images of shape {self._input}, got "
                f"{'x'.join(map(str, images.shape))}; export the detector with this batch and "
                "input size"
            )
        return in_type(images, self._input.pixels)


class OrtRunner(ExportedRunner):
    """ONNX Runtime with one execution provider."""

    def __init__(self, runtime: str, artifact: Path, threads: int = 1) -> None:
        super().__init__(runtime, artifact, deployed_header(artifact))
        self._threads = threads
        self._session = file_session(runtime, artifact, threads)

    def __exit__(self, *_: object) -> None:
        self._session = None  # frees its memory

    def _outputs(self, images: Array, names: Sequence[str]) -> list[Array]:
        outputs: list[Array] = self._session.run(names, {"images": images})
        return outputs

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        return bound_call(self._session, {"images": self._as_input(images)}, self._runtime)

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads."""
        import onnxruntime

        on_gpu = self._runtime == "ort-cuda"
        return {
            "runtime": self._runtime,
            "version": onnxruntime.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": self._threads,
        }


class EngineRunner(ExportedRunner):
    """TensorRT or TensorRT-RTX; what is timed is the replay of one CUDA graph, where it can be."""

    def __init__(self, runtime: str, artifact: Path) -> None:
        engine = read_plan_info(artifact)
        built_for = _engine_runtime(engine)
        if built_for != runtime:
            raise AdaptError(
                f"{artifact} was built for runtime {built_for}, not {runtime}; choose it or build "
                "the engine again"
            )
        super().__init__(runtime, artifact, deployed_header(artifact))
        self._version = engine["tensorrt_version"]
        self._engine = EngineExecution.open(artifact)

    def _outputs(self, images: Array, names: Sequence[str]) -> list[Array]:
        self._engine.feed({"images": images})
        self._engine.run()
        return [self._engine.buffers[name].cpu().numpy() for name in names]

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        self._engine.feed({"images": self._as_input(images)})
        if self.tail == "onnx-nms":  # its shapes depend on the data, which no CUDA graph can hold
            self._engine.captured = False
            return self._engine.run
        return self._engine.capture()

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads (0: the GPU does the work).

        Once bound, also whether the call to time launches a CUDA graph.
        """
        captured = self._engine.captured
        return {
            "runtime": self._runtime,
            "version": self._version,
            "device": torch.cuda.get_device_name(),
            "threads": 0,
            **({} if captured is None else {"cuda_graph": captured}),
        }


def _engine_runtime(engine: Mapping[str, Any]) -> str:
    """Return the runtime of an engine; TensorRT's packages have an underscore in their names."""
    return str(engine["flavour"]).replace("_", "-")
