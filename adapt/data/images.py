"""How does an image become the detector's input, the same way in training and deployment?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from adapt.errors import FORBID_UNKNOWN, AdaptError

# Near the ImageNet mean, so the padded area is near zero after normalisation.
PADDING = 114
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".webp"}  # of files that folders are searched for


@dataclass(frozen=True)
class InputSize:
    """Size of the detector's input and how images are fitted into it.

    Attributes:
        height: Height in pixels; for ``shortest-edge`` the length of the short side.
        width: Width in pixels; for ``shortest-edge`` the limit of the long side.
        resize: ``letterbox`` keeps the aspect ratio and pads right and below to exactly
            ``height`` x ``width``, what a fixed-shape engine needs. ``shortest-edge`` scales the
            short side to ``height`` unless the long side would exceed ``width``, and does not
            pad: RetinaNet's own protocol (paper section IV-A).
    """

    __pydantic_config__ = FORBID_UNKNOWN
    height: int
    width: int
    resize: Literal["letterbox", "shortest-edge"] = "letterbox"

    def __post_init__(self) -> None:
        if self.height < 32 or self.width < 32:
            raise AdaptError(
                f"the input must be at least 32x32 pixels, got {self.height}x{self.width}"
            )
        if self.resize not in ("letterbox", "shortest-edge"):
            raise AdaptError(
                f"input.resize must be 'letterbox' or 'shortest-edge', got {self.resize!r}"
            )
        if self.resize == "letterbox" and (self.height % 32 or self.width % 32):
            rounded = self.fixed()
            raise AdaptError(
                f"a letterbox must be a multiple of 32 pixels high and wide, got "
                f"{self.height}x{self.width}; use {rounded.height}x{rounded.width}"
            )

    def fixed(self) -> "InputSize":
        """Return this size as a letterbox, rounded up to multiples of 32: one fixed input shape."""
        return InputSize(-(-self.height // 32) * 32, -(-self.width // 32) * 32)

    def scale(self, height: int, width: int) -> float:
        """Return the factor by which an image of this size is scaled."""
        if self.resize == "letterbox":
            return min(self.height / height, self.width / width)
        return min(self.height / min(height, width), self.width / max(height, width))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def fit(image: Image.Image, size: InputSize) -> tuple[Tensor, tuple[float, float]]:
    """Scale an RGB image into the input.

    Args:
        image: RGB image of any size.
        size: The detector's input.

    Returns:
        ``Tensor[3, H, W]`` uint8, and the factors (x, y) from image to input coordinates; divide
        detected boxes by them to get boxes of the image.
    """
    scale = size.scale(image.height, image.width)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    factors = width / image.width, height / image.height
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    if size.resize == "shortest-edge":
        return pixels.contiguous(), factors
    canvas = torch.full((3, size.height, size.width), PADDING, dtype=torch.uint8)
    canvas[:, :height, :width] = pixels
    return canvas, factors


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return image files: those given, and those in given folders and below, in order.

    Raises:
        AdaptError: If a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise AdaptError(
                    f"folder {path} holds no image; files must end in {', '.join(sorted(SUFFIXES))}"
                )
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise AdaptError(f"image {path} does not exist; pass image files or folders of them")
    return images


def open_image(path: Path) -> Image.Image:
    """Decode an image as RGB, turned as its EXIF data say: what a viewer shows.

    Raises:
        AdaptError: If the file is missing, damaged, or no image.
    """
    try:
        with Image.open(path) as file:
            # Via RGBA, because a palette with transparency has no direct way to RGB.
            stored = file.convert("RGBA") if file.mode == "P" else file
            return ImageOps.exif_transpose(stored).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AdaptError(f"{path} is no readable image ({error}); remove or replace it") from error
