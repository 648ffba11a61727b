"""On which images is an exported detector calibrated and compared with PyTorch?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapt.data.coco import load_split
from adapt.data.images import Fitting, InputSize, find_images, fit, open_image
from adapt.data.layout import has_split
from adapt.errors import AdaptError
from export.graph.canvas import Canvas
from export.graph.options import Pixels
from export.run.inference import Array, batch_of_one, in_type
from export.run.parity import NamedImages

CALIBRATION_IMAGES = 64
VERIFY_IMAGES = 8


@dataclass(frozen=True)
class Samples:
    """Image files for a graph of some batch.

    Attributes:
        paths: The files.
        batch: Images per inference.
        dynamic: Whether fewer are accepted too.

    Raises:
        AdaptError: If there are some, but too few for a batch.
    """

    paths: Sequence[Path]
    batch: int = 1
    dynamic: bool = False

    def __post_init__(self) -> None:
        if 0 < len(self.paths) < self.least:
            raise AdaptError(
                f"{len(self.paths)} images do not fill a batch of {self.batch}; pass more"
            )

    @property
    def least(self) -> int:
        """Smallest number of images of one inference."""
        return 1 if self.dynamic else self.batch

    def check(self) -> None:
        """Open every image.

        Raises:
            AdaptError: If one cannot be read.
        """
        for path in self.paths:
            open_image(path)

    def fitted(self, canvases: Sequence[Canvas]) -> list[NamedImages]:
        """Return the images for each of the files of a detector, in whole batches.

        They are those of the file's orientation, or all if these do not fill a batch. What is left
        over of the last batch is left out, unless the batch is dynamic.

        Args:
            canvases: Of the files.

        Raises:
            AdaptError: If an image cannot be read.
        """
        sizes = tuple(canvas.size for canvas in canvases)
        fitting = Fitting(canvases[0].resize, sizes)
        pixels: dict[InputSize, list[Array]] = {size: [] for size in sizes}
        names: dict[InputSize, list[str]] = {size: [] for size in sizes}
        for path in self.paths:
            image = open_image(path)
            size = fitting.canvas(image.height, image.width) or sizes[0]
            pixels[size].append(batch_of_one(fit(image, fitting.resize, size)[0]))
            names[size].append(str(path))
        return [
            self._whole(pixels[canvas.size], names[canvas.size])
            if len(names[canvas.size]) >= self.least
            else self.fitted([canvas])[0]
            for canvas in canvases
        ]

    def _whole(self, pixels: Sequence[Array], names: Sequence[str]) -> NamedImages:
        number = len(names) - len(names) % self.least
        return NamedImages(np.concatenate(pixels[:number]), names[:number])

    def batches(self, images: NamedImages, pixels: Pixels) -> list[Array]:
        """Return images as the batches of a graph's input."""
        starts = range(0, len(images.pixels), self.batch)
        return [in_type(images.pixels[start : start + self.batch], pixels) for start in starts]


def training_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images of the train splits of data sets, and those of other folders and files.

    Raises:
        AdaptError: If a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if has_split(path, "train"):
            # Boxes play no role in calibration.
            split = load_split(path, "train", repair=True)
            images += [image.checked_path() for image in split.images]
        else:
            images += find_images([path])
    return images


def spread(paths: Sequence[Path], limit: int) -> list[Path]:
    """Return at most ``limit`` of the paths, evenly spaced."""
    number = min(limit, len(paths))
    return [paths[round(i * (len(paths) - 1) / max(number - 1, 1))] for i in range(number)]
