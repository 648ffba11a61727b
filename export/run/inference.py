"""What can every runner do, whatever its runtime? (detect in images, raw heads, calls to time)"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from adapt.data.evaluate import detections_to_original
from adapt.data.images import Fitting
from adapt.detector.file import DetectorInfo
from adapt.runtime import Precision, Tail
from export.graph.options import Pixels

Array = NDArray[Any]


class ImageDetections(NamedTuple):
    """What a detector found in one image.

    Attributes:
        boxes: float32 ``[n, 4]``, corners (x1, y1, x2, y2), in pixels of the detector's input or
            of the image: the function that returns them says which.
        scores: float32 ``[n]``, in descending order.
        labels: int64 ``[n]``, indices into the detector's classes.
    """

    boxes: Array
    scores: Array
    labels: Array

    def in_image(self, factors: Sequence[float], width: int, height: int) -> "ImageDetections":
        """Return detections of the input as those of the image that was fitted into it.

        Args:
            factors: (x, y) from image to input, as :func:`adapt.data.images.fit` returns them.
            width: Width of the image in pixels.
            height: Its height.

        Returns:
            Those that have an area in the image: what lies in the padding is no detection.
        """
        boxes, inside = self._located(factors, width, height)
        return ImageDetections(boxes[inside], self.scores[inside], self.labels[inside])

    def without_padding(
        self, factors: Sequence[float], width: int, height: int
    ) -> "ImageDetections":
        """Return the detections that :meth:`in_image` keeps, in pixels of the input still."""
        _, inside = self._located(factors, width, height)
        return ImageDetections(*(values[inside] for values in self))

    def _located(self, factors: Sequence[float], width: int, height: int) -> tuple[Array, Array]:
        boxes, inside = detections_to_original(torch.from_numpy(self.boxes), factors, width, height)
        return boxes.numpy(), inside.numpy()

    @classmethod
    def from_torchvision(cls, detections: Mapping[str, Tensor]) -> "ImageDetections":
        """Take over what torchvision's RetinaNet returns for one image."""
        return cls(*(detections[name].cpu().numpy() for name in cls._fields))


class Runner(ABC):
    """One artifact, ready to run on one runtime; a context manager.

    Attributes:
        info: The detector.
        precision: In which the artifact computes.
        tail: How its graph ends; None for PyTorch, which gives detections and raw heads.
        fitting: How images are fitted into its input.
        batch: Largest number of images that :meth:`detect` gives to one inference.
        dynamic: Whether fewer are accepted too; PyTorch takes more as well.
    """

    info: DetectorInfo
    precision: Precision = "fp32"
    tail: Tail | None = None
    fitting: Fitting
    batch: int = 1
    dynamic: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels."""
        return self.info.classes

    @property
    def most_detections(self) -> int:
        """Detections of an image, at most."""
        return self.info.detector.detections

    def detect(self, images: Sequence[Image]) -> list[ImageDetections]:
        """Detect in RGB images of any sizes.

        The images of one shape of the input share an inference; a batch that is not full, and
        cannot be smaller, is filled with copies.

        Returns:
            Detections of every image in its own pixels, none in the padding alone.

        Raises:
            AdaptError: If the artifact ends in raw heads.
        """
        fitted = [self.fitting(image) for image in images]
        found: dict[int, ImageDetections] = {}
        for numbers in self._batches([pixels.shape for pixels, _ in fitted]):
            filled = [*numbers, *[numbers[-1]] * (self._least - len(numbers))]
            of_batch = self.infer(np.stack([fitted[n][0].numpy() for n in filled]))
            for n, detections in zip(numbers, of_batch, strict=False):
                found[n] = detections.in_image(fitted[n][1], *images[n].size)
        return [found[n] for n in range(len(images))]

    @property
    def _least(self) -> int:
        """Smallest number of images of one inference."""
        return 1 if self.dynamic else self.batch

    def _batches(self, shapes: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the numbers of the images in batches of one shape."""
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for number, shape in enumerate(shapes):
            of_shape.setdefault(tuple(shape), []).append(number)
        return [
            numbers[start : start + self.batch]
            for numbers in of_shape.values()
            for start in range(0, len(numbers), self.batch)
        ]

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
        """Return a call to be timed: it runs inference on these images and nothing else.

        The images are on the runtime's device before; the call returns when the outputs are
        complete, without copying them back.

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


def batch_of_one(pixels: Tensor) -> Array:
    """Return uint8 ``Tensor[3, H, W]`` as uint8 ``[1, 3, H, W]``."""
    return pixels.numpy()[None]


def unit(images: Array) -> NDArray[np.float32]:
    """Return uint8 images as float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def in_type(images: Array, pixels: Pixels) -> Array:
    """Return uint8 images as they are, or as float32 in [0, 1]."""
    return images if pixels == "uint8" else unit(images)


def batch_detections(
    number: Array, boxes: Array, scores: Array, classes: Array
) -> list[ImageDetections]:
    """Cut a graph's outputs, padded to a fixed size, to the detections of each image."""
    return [
        ImageDetections(boxes[i, :n], scores[i, :n], classes[i, :n].astype(np.int64))
        for i, n in enumerate(number[:, 0])
    ]
