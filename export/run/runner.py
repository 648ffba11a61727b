"""How does one artifact run on one runtime?"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapt.artifacts import check_header
from adapt.data.images import InputSize
from adapt.detector.file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from adapt.runtime import Precision, Tail
from export.engine.execution import EngineExecution, read_plan_info
from export.graph.detector import RawHeads, read_onnx_info
from export.graph.options import DETECTIONS, RAW_HEADS, ImageInput, Pixels
from export.run.onnx_session import PROVIDERS, bound_call, ort_session

ARTIFACTS = {
    "torch": ".safetensors",
    "ort-cpu": ".onnx",
    "ort-cuda": ".onnx",
    "tensorrt": ".plan",
    "tensorrt-rtx": ".plan",
}
RUNTIMES = tuple(ARTIFACTS)

Array = NDArray[Any]


class ImageDetections(NamedTuple):
    """What a detector found in one image.

    Attributes:
        boxes: float32 ``[n, 4]``, corners (x1, y1, x2, y2) in pixels of the detector's input.
        scores: float32 ``[n]``, in descending order.
        labels: int64 ``[n]``, indices into the detector's classes.
    """

    boxes: Array
    scores: Array
    labels: Array


class Runner(ABC):
    """One artifact, ready to run on one runtime; a context manager.

    Attributes:
        info: The detector.
        precision: Precision of the artifact.
        tail: How its graph ends; None for PyTorch, which gives detections and raw heads.
    """

    info: DetectorInfo
    precision: Precision = "fp32"
    tail: Tail | None = None

    @property
    def size(self) -> InputSize:
        """How images are fitted for this runtime: a fixed letterbox, unless it takes any size."""
        return self.info.input.fixed()

    @abstractmethod
    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in uint8 images ``[B, 3, H, W]``, fitted to ``info.input``.

        Raises:
            AdaptError: If the artifact takes images of another shape, or ends in raw heads.
        """

    @abstractmethod
    def heads(self, images: Array) -> dict[str, Array]:
        """Return float32 ``cls_logits [B, A, K]`` and ``bbox_regression [B, A, 4]`` of images.

        Raises:
            AdaptError: If the artifact takes images of another shape, or ends in detections.
        """

    @abstractmethod
    def bind(self, images: Array) -> Callable[[], None]:
        """Return a call that runs inference on these images and nothing else, to be timed.

        The images are already where the runtime wants them, the call returns when the outputs are
        complete, and nothing is copied back.

        Raises:
            AdaptError: If the artifact takes images of another shape.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def open_runner(runtime: str, artifact: Path, threads: int = 1) -> Runner:
    """Return the runner of an artifact; use it in a ``with`` statement.

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
    if runtime in PROVIDERS:
        return OrtRunner(runtime, artifact, threads)
    return EngineRunner(runtime, artifact)


def usual_runtime(artifact: Path) -> str:
    """Return the runtime that runs such a file: on the CPU, unless it is an engine.

    Raises:
        AdaptError: If it is an engine that does not say what built it.
    """
    if artifact.suffix == ".plan":
        return str(read_plan_info(artifact)["flavour"]).replace("_", "-")
    return "torch" if artifact.suffix == ".safetensors" else "ort-cpu"


def check_artifact(runtime: str, artifact: Path) -> None:
    """Check that a runtime exists and runs files of this kind.

    Raises:
        AdaptError: With the fix.
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
    """Eager inference of torchvision's RetinaNet on the CPU, what most people do by default.

    The number of threads belongs to the process: it is set on entry and restored on exit.
    """

    def __init__(self, artifact: Path, threads: int = 1) -> None:
        self._model, self.info = load_detector(artifact)
        self._threads = threads
        self._threads_before = torch.get_num_threads()

    @property
    def size(self) -> InputSize:
        """The detector's own protocol: eager inference takes images of any size."""
        return self.info.input

    def __enter__(self) -> Self:
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads_before)

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in ``[B, 3, H, W]``; see :meth:`Runner.infer`."""
        return [_from_torch(found) for found in self._run(list(torch.from_numpy(unit(images))))]

    @torch.inference_mode()
    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        found = RawHeads(self._model)(torch.from_numpy(unit(images)))
        return {name: head.numpy() for name, head in zip(RAW_HEADS, found, strict=True)}

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        tensors = list(torch.from_numpy(unit(images)))

        def call() -> None:
            self._run(tensors)

        return call

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads."""
        return {
            "runtime": "torch",
            "version": torch.__version__,
            "device": "cpu",
            "threads": self._threads,
        }

    @torch.inference_mode()
    def _run(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = self._model(images)
        return found


def _from_torch(found: dict[str, Tensor]) -> ImageDetections:
    return ImageDetections(*(found[name].numpy() for name in ("boxes", "scores", "labels")))


class OrtRunner(Runner):
    """ONNX Runtime with one execution provider."""

    def __init__(self, runtime: str, artifact: Path, threads: int = 1) -> None:
        self.info, self._header = read_onnx_info(artifact)
        self.precision, self.tail = self._header["precision"], self._header["tail"]
        self._input = ImageInput.of(self.info, self._header)
        self._runtime = runtime
        self._artifact = artifact
        self._threads = threads
        self._session = ort_session(runtime, artifact.read_bytes(), threads)

    def __exit__(self, *_: object) -> None:
        self._session = None  # frees its memory

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in ``[B, 3, H, W]``; see :meth:`Runner.infer`.

        Raises:
            AdaptError: If the shape is not the file's or the file ends in raw heads.
        """
        check_tail(self._header, self._artifact, detects=True)
        fed = feed(images, self._input, self._artifact)
        return batch_detections(*self._session.run(DETECTIONS, {"images": fed}))

    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        check_tail(self._header, self._artifact, detects=False)
        fed = feed(images, self._input, self._artifact)
        found = self._session.run(RAW_HEADS, {"images": fed})
        return dict(zip(RAW_HEADS, found, strict=True))

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`.

        Raises:
            AdaptError: If the shape is not the file's.
        """
        fed = feed(images, self._input, self._artifact)
        return bound_call(self._session, {"images": fed}, self._runtime)

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


class EngineRunner(Runner):
    """TensorRT or TensorRT-RTX; inference is one CUDA graph."""

    def __init__(self, runtime: str, artifact: Path) -> None:
        content = read_plan_info(artifact)
        built_for = content["flavour"].replace("_", "-")
        if built_for != runtime:
            raise AdaptError(
                f"{artifact} was built for runtime {built_for}, not {runtime}; choose it or build "
                "the engine again"
            )
        self._header = check_header(content["onnx"], "onnx-detector", artifact)
        self.info = DetectorInfo.from_dict(self._header)
        self.precision, self.tail = self._header["precision"], self._header["tail"]
        self._input = ImageInput.of(self.info, self._header)
        self._runtime = runtime
        self._artifact = artifact
        self._version = content["tensorrt_version"]
        self._engine = EngineExecution.open(artifact)

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in ``[B, 3, H, W]``; see :meth:`Runner.infer`."""
        check_tail(self._header, self._artifact, detects=True)
        found = self._run(images)
        return batch_detections(*(found[name] for name in DETECTIONS))

    def heads(self, images: Array) -> dict[str, Array]:
        """Return the raw heads; see :meth:`Runner.heads`."""
        check_tail(self._header, self._artifact, detects=False)
        return self._run(images)

    def _run(self, images: Array) -> dict[str, Array]:
        self._engine.feed({"images": feed(images, self._input, self._artifact)})
        self._engine.run()
        return {name: self._engine.buffers[name].cpu().numpy() for name in self._engine.outputs}

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time; see :meth:`Runner.bind`."""
        self._engine.feed({"images": feed(images, self._input, self._artifact)})
        if self.tail == "onnx-nms":  # its shapes depend on the data, which no CUDA graph can hold
            return self._engine.run
        return self._engine.capture()

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device and threads (0: the GPU does the work)."""
        return {
            "runtime": self._runtime,
            "version": self._version,
            "device": torch.cuda.get_device_name(),
            "threads": 0,
        }


def batch_of_one(pixels: Tensor) -> Array:
    """Return uint8 ``Tensor[3, H, W]`` as uint8 ``[1, 3, H, W]``."""
    return pixels.numpy()[None]


def unit(images: Array) -> NDArray[np.float32]:
    """Return uint8 images as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def feed(images: Array, wanted: ImageInput, artifact: Path) -> Array:
    """Return uint8 images as a file takes them.

    Raises:
        AdaptError: If they have another shape.
    """
    if not wanted.fits(images.shape):
        raise AdaptError(
            f"{artifact} takes images of shape {wanted}, got {'x'.join(map(str, images.shape))}; "
            "export the detector with this batch and input size"
        )
    return in_type(images, wanted.pixels)


def in_type(images: Array, pixels: Pixels) -> Array:
    """Return uint8 images as they are, or as float32 in [0, 1]."""
    return images if pixels == "uint8" else unit(images)


def check_tail(header: dict[str, Any], artifact: Path, *, detects: bool) -> None:
    """Check that a file ends in detections, or in raw heads.

    Raises:
        AdaptError: If it does not.
    """
    if detects and header["tail"] == "none":
        raise AdaptError(
            f"{artifact} ends in raw heads (tail 'none') and detects nothing by itself; export it "
            "with tail 'tensor-nms' or 'onnx-nms'"
        )
    if not detects and header["tail"] != "none":
        raise AdaptError(f"{artifact} ends in detections; export it with tail 'none'")


def batch_detections(
    number: Array, boxes: Array, scores: Array, classes: Array
) -> list[ImageDetections]:
    """Cut the deployed graph's fixed-size outputs to what was found in each image."""
    return [
        ImageDetections(boxes[i, :n], scores[i, :n], classes[i, :n].astype(np.int64))
        for i, n in enumerate(number[:, 0])
    ]
