"""How does another tool's ONNX file detect, and which calls of it are timed?"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL.Image import Image

from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from bench.peers.file import PeerFile
from bench.peers.forms import class_count, detections_of, recognised, relevant_outputs
from bench.peers.placing import normalised, place
from bench.peers.settings import Settings, settings_of, sidecar
from export.graph.onnx_file import HEADER, load_onnx
from export.run.inference import Array, ImageDetections, Runner
from export.run.onnx_session import PROVIDERS, bound_call, fetching_call, file_session
from export.run.runner import open_runner

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def is_peer(file: Path) -> bool:
    """Whether a file is an ONNX file that `adapt export` did not write.

    Raises:
        AdaptError: If it is an ONNX file that cannot be read.
    """
    if file.suffix != ".onnx" or not file.is_file():
        return False
    return HEADER not in {prop.key for prop in load_onnx(file).metadata_props}


def open_detector(runtime: str, file: Path, threads: int = 1) -> Runner:
    """Open a detector of this tool or of another; arguments and errors as of `open_runner`."""
    if is_peer(file) and runtime in PROVIDERS:
        return PeerRunner(runtime, file, threads)
    return open_runner(runtime, file, threads)


class PeerRunner(Runner):
    """An ONNX file of another tool on ONNX Runtime.

    What is timed is the network, and what makes its outputs detections: NMS of YOLO's forms, the
    choice of the best queries of DETR's, by PyTorch on the processor. Detectors of this tool have
    both inside of their graphs. Normalisation, which those have inside too, is timed where a file
    has it inside, as torchvision's do.

    Args:
        runtime: ``ort-cpu`` or ``ort-cuda``.
        path: The file.
        threads: CPU threads of one inference.

    Raises:
        AdaptError: If the file cannot be run, or its form is neither known nor told.
    """

    def __init__(self, runtime: str, path: Path, threads: int = 1) -> None:
        self.file = PeerFile.read(path)
        self.precision = self.file.precision
        self._runtime, self._threads = runtime, threads
        self._session = file_session(runtime, path, threads)
        (image,) = self._session.get_inputs()
        self._input, self._type = image.name, TYPES[image.type]
        self.dynamic = self.file.batched and not isinstance(image.shape[0], int)
        self.batch = 1 if self.dynamic or not self.file.batched else image.shape[0]
        self.size = self._size()
        self.settings, self._outputs, self.class_count = self._understood()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the outputs; empty if neither file nor settings have them."""
        return self.settings.classes or self.file.names or ()

    @property
    def most_detections(self) -> int:
        """Detections of an image, at most."""
        return self.settings.detections

    def matched(self, split: CocoSplit) -> CocoSplit:
        """Return a split with the labels of this detector's classes: by name, or by order.

        Raises:
            AdaptError: If the split has boxes of classes that are not named, or nothing names the
                classes and their number is another or unknown.
        """
        if self.classes:
            return split.matched(self.classes, self.file.path.name)
        if self.settings.form == "torchvision":
            example = json.dumps(["", *split.class_names], ensure_ascii=False)
            raise AdaptError(
                f"{self.file.path} does not name its classes; write classes = {example} into "
                f'{sidecar(self.file.path)}, in the order of its labels, "" for one that is none'
            )
        if self.class_count not in (None, len(split.class_names)):
            raise AdaptError(
                f"{self.file.path} finds {self.class_count} classes and does not name them, "
                f"{split.annotations} has {len(split.class_names)}; write classes = [...] into "
                f'{sidecar(self.file.path)}, in the order of its outputs, "" for one that is none'
            )
        return split

    def placed(self, image: Image) -> Array:
        """Return an image as uint8 ``[1, 3, H, W]`` of the input."""
        return place(image, self.size, self.settings).pixels.numpy()[None]

    def detect(self, images: Sequence[Image]) -> list[ImageDetections]:
        """Detect in RGB images of any sizes; see :meth:`Runner.detect`."""
        placed = [place(image, self.size, self.settings) for image in images]
        found: list[ImageDetections] = []
        for start in range(0, len(placed), self.batch):
            part = placed[start : start + self.batch]
            filled = part + part[-1:] * (self._least - len(part))
            of_batch = self.infer(np.stack([one.pixels.numpy() for one in filled]))
            found += [one.in_image(of) for one, of in zip(part, of_batch, strict=False)]
        return found

    def infer(self, images: Array) -> list[ImageDetections]:
        """Detect in uint8 RGB images ``[B, 3, H, W]`` of the input."""
        outputs = self._session.run(self._outputs, self._feed(images))
        return detections_of(outputs, self.settings, self.size)

    def heads(self, images: Array) -> dict[str, Array]:
        """Refuse: other tools have other heads."""
        raise AdaptError(f"{self.file.path} was not written by `adapt export`; it has other heads")

    def bind(self, images: Array) -> Callable[[], None]:
        """Return the call to time: the network, and what makes its outputs detections."""
        run = fetching_call(self._session, self._feed(images), self._outputs, self._runtime)

        def call() -> None:
            detections_of(run(), self.settings, self.size)

        return call

    def bind_network(self, images: Array) -> Callable[[], None]:
        """Return a call of the network alone."""
        return bound_call(self._session, self._feed(images), self._runtime)

    def describe(self) -> dict[str, Any]:
        """Return runtime, version, device, threads, and how it was understood."""
        import onnxruntime

        on_gpu = self._runtime == "ort-cuda"
        return {
            "runtime": self._runtime,
            "version": onnxruntime.__version__,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "threads": self._threads,
            "peer": {**self.settings.to_dict(), "input": list(self.size)},
        }

    def __enter__(self) -> Self:
        # PyTorch's number of threads belongs to the process, so it is restored on exit.
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads_before)
        self._session = None  # frees its memory

    def _feed(self, images: Array) -> dict[str, Array]:
        """Return the input for uint8 RGB images ``[B, 3, H, W]``."""
        pixels = normalised(images, self.settings, self._type)
        return {self._input: pixels if self.file.batched else pixels[0]}

    def _size(self) -> tuple[int, int]:
        size = self.file.size or settings_of(self.file.path).input
        if size is None:
            raise AdaptError(
                f"{self.file.path} takes images of any size; write input = [HEIGHT, WIDTH] into "
                f"{sidecar(self.file.path)}"
            )
        return size

    def _understood(self) -> tuple[Settings, tuple[str, ...], int | None]:
        """Return the settings with the form, the relevant outputs, and the number of classes."""
        path, told = self.file.path, settings_of(self.file.path)
        answer = self._answer()
        shapes = {name: np.shape(value) for name, value in answer.items()}
        names = told.classes or self.file.names
        outputs = relevant_outputs(answer, told.form)
        relevant = [shapes[name] for name in outputs]
        form = told.form or recognised(relevant, len(names) if names else None)
        if form is None:
            raise AdaptError(_unknown_form(path, shapes, names))
        settings = settings_of(path, form)
        try:
            classes = class_count(form, relevant, settings)
        except AdaptError as error:
            raise AdaptError(f"{path}: {error}; correct form in {sidecar(path)}") from error
        if names and classes is not None and classes != len(names):
            raise AdaptError(
                f"{path} finds {classes} classes, but {len(names)} are named; correct classes in "
                f"{sidecar(path)}"
            )
        return settings, outputs, classes

    def _answer(self) -> dict[str, Array]:
        """Return all outputs for one batch: their shapes in the file may be names."""
        blank = np.zeros((self.batch, 3, *self.size), self._type)
        values = self._session.run(None, {self._input: blank if self.file.batched else blank[0]})
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, values, strict=True))


def _unknown_form(
    path: Path, shapes: Mapping[str, tuple[int, ...]], names: Sequence[str] | None
) -> str:
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    known = f" for {len(names)} classes" if names else ""
    return (
        f"the outputs of {path} ({listed}) have no form of a detector that is known{known}: YOLO's "
        "[N, 4 + C, A] or [N, A, 5 + C], DETR's [N, Q, 4] and [N, Q, C], [N, K, 6] after NMS, or "
        "torchvision's [K, 4], [K] and [K]; "
        f'export it in one of these, or write form = "..." into {sidecar(path)}'
    )
