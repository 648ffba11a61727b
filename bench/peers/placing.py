"""How is an image put into the input of another tool's detector, and a box back into the image?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from bench.peers.settings import Settings
from export.run.inference import Array, ImageDetections


@dataclass(frozen=True)
class Placed:
    """An image in the input.

    Attributes:
        pixels: uint8 ``Tensor[3, H, W]``, RGB.
        factors: (x, y) from lengths in the image to those in the input.
        corner: (x, y) of its upper left corner in the input.
        size: Width and height of the image itself.
    """

    pixels: Tensor
    factors: tuple[float, float]
    corner: tuple[int, int]
    size: tuple[int, int]

    def in_image(self, found: ImageDetections) -> ImageDetections:
        """Return detections of the input as those of the image, without those beside it."""
        boxes = found.boxes - np.array([*self.corner, *self.corner], np.float32)
        return ImageDetections(boxes, found.scores, found.labels).in_image(self.factors, *self.size)


def place(image: Image, size: tuple[int, int], settings: Settings) -> Placed:
    """Scale an RGB image into an input of this height and width."""
    height, width = size
    scales = height / image.height, width / image.width
    if settings.resize != "stretch":
        scales = (min(scales),) * 2
    inner = [
        max(1, round(of * s)) for of, s in zip((image.height, image.width), scales, strict=True)
    ]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    scaled = resize(pixels, inner, antialias=settings.antialias)
    top, left = _margins((height - inner[0], width - inner[1]), settings)
    canvas = torch.full((3, height, width), settings.padding, dtype=torch.uint8)
    canvas[:, top : top + inner[0], left : left + inner[1]] = scaled
    factors = inner[1] / image.width, inner[0] / image.height
    return Placed(canvas, factors, (left, top), image.size)


def _margins(free: Sequence[int], settings: Settings) -> list[int]:
    """Return the free pixels above and to the left; of an odd number, the larger part is below."""
    return [pixels // 2 if settings.resize == "letterbox" else 0 for pixels in free]


def normalised(images: Array, settings: Settings, dtype: type) -> Array:
    """Return uint8 RGB images ``[N, 3, H, W]`` as the input wants them; bytes as they are."""
    if settings.channels == "BGR":
        images = images[:, ::-1]
    if dtype is np.uint8:
        return np.ascontiguousarray(images)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (settings.mean, settings.std))
    scaled = images.astype(np.float32) * np.float32(settings.white / 255)
    return ((scaled - mean) / std).astype(dtype)
