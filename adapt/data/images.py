"""How does an image become the detector's input, the same way in training and deployment?"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from adapt.artifacts import DAMAGE
from adapt.errors import FORBID_UNKNOWN, AdaptError

# Near the ImageNet mean, so the padded area is near zero after normalisation.
PADDING = 114
# The ImageNet mean. torchvision pads images of a batch, where their sizes differ, with zeros after
# normalisation: what a detector has seen beside its images that was trained by the shortest edge.
MEAN = (124, 116, 104)
# Of files that folders are searched for. Also those that Pillow may not read: what a camera wrote
# must not be passed over without a word.
COMMON = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SUFFIXES = COMMON | {".avif", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".mpo"}
# Pillow's own limit is for servers that open files of strangers; ours is max_megapixels.
Image.MAX_IMAGE_PIXELS = None
# What a file of any name may hold. Pillow knows more, of which PostScript runs a program.
FORMATS = {
    *("AVIF", "BMP", "DIB", "GIF", "HEIF", "ICO", "JPEG", "JPEG2000", "MPO"),
    *("PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP"),
}


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

    @classmethod
    def parse(cls, text: str, option: str) -> "InputSize":
        """Read a letterbox like ``256x320``, height and width.

        Raises:
            AdaptError: If the text has another form, or there is no such letterbox.
        """
        try:
            height, width = map(int, text.split("x"))
        except ValueError:
            raise AdaptError(
                f"{option} must be like 256x320, height and width, got {text!r}"
            ) from None
        return cls(height, width)

    def fixed(self) -> "InputSize":
        """Return this size as a letterbox, rounded up to multiples of 32: one fixed input shape."""
        return InputSize(-(-self.height // 32) * 32, -(-self.width // 32) * 32)

    def canvases(self) -> tuple["InputSize", ...]:
        """Return the fixed input shapes that hold every image as it was fitted in training.

        One, or for ``shortest-edge`` two: of landscape images, which is :meth:`fixed`, and of
        portrait ones.
        """
        canvas = self.fixed()
        if self.resize == "letterbox" or canvas.height >= canvas.width:
            return (canvas,)
        return canvas, InputSize(canvas.width, canvas.height)

    def scale(self, height: int, width: int) -> float:
        """Return the factor by which an image of this size is scaled."""
        if self.resize == "letterbox":
            return min(self.height / height, self.width / width)
        return min(self.height / min(height, width), self.width / max(height, width))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def fit(
    image: Image.Image, size: InputSize, canvas: InputSize | None = None
) -> tuple[Tensor, tuple[float, float]]:
    """Scale an RGB image into the input.

    Args:
        image: RGB image of any size.
        size: The detector's input.
        canvas: The fixed shape that the image is padded to, and made smaller for if need be; by
            default ``size`` of a letterbox, and none for ``shortest-edge``.

    Returns:
        ``Tensor[3, H, W]`` uint8, and the factors (x, y) from image to input coordinates; divide
        detected boxes by them to get boxes of the image.
    """
    if size.resize == "letterbox":
        canvas = canvas or size
    scale = min(of.scale(image.height, image.width) for of in (size, canvas or size))
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    factors = width / image.width, height / image.height
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(resized, dtype=np.uint8)).permute(2, 0, 1)
    if canvas is None:
        return pixels.contiguous(), factors
    colour = (PADDING,) * 3 if size.resize == "letterbox" else MEAN
    padded = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1)
    padded = padded.repeat(1, canvas.height, canvas.width)
    padded[:, :height, :width] = pixels
    return padded, factors


@dataclass(frozen=True)
class Fitting:
    """How a detector, in training or deployed, fits images into its input.

    Attributes:
        resize: How images were scaled in training.
        canvases: The fixed shapes that it takes, of which an image gets the one that it is largest
            on; empty if it takes any size.
    """

    resize: InputSize
    canvases: tuple[InputSize, ...] = ()

    @classmethod
    def trained(cls, size: InputSize) -> "Fitting":
        """Return how a detector with this input was trained."""
        return cls(size, (size,) if size.resize == "letterbox" else ())

    def __call__(self, image: Image.Image) -> tuple[Tensor, tuple[float, float]]:
        """Fit an image; see :func:`fit`."""
        return fit(image, self.resize, self.canvas(image.height, image.width))

    def canvas(self, height: int, width: int) -> InputSize | None:
        """Return the canvas that an image of this size gets, if it gets any."""
        return max(self.canvases, key=lambda c: self._on(c, height, width), default=None)

    def scale(self, height: int, width: int) -> float:
        """Return the factor by which an image of this size is scaled."""
        canvas = self.canvas(height, width)
        return self._on(canvas or self.resize, height, width)

    def relative_scale(self, height: int, width: int) -> float:
        """Return the scale at which an image of this size is seen, 1 for that of training."""
        return self.scale(height, width) / self.resize.scale(height, width)

    def _on(self, canvas: InputSize, height: int, width: int) -> float:
        """Return the factor by which an image is scaled on a canvas."""
        return min(self.resize.scale(height, width), canvas.scale(height, width))


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return image files: those given, and those in given folders and below, in order.

    Raises:
        AdaptError: If a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(found for found in path.rglob("*") if _is_image(found, path))
            if not inside:
                raise AdaptError(
                    f"folder {path} holds no image; files must end in {', '.join(sorted(COMMON))}"
                )
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise AdaptError(f"image {path} does not exist; pass image files or folders of them")
    return images


def _is_image(path: Path, folder: Path) -> bool:
    # macOS writes a companion ._photo.jpg beside photo.jpg, which is no image; file managers and
    # notebooks keep copies in hidden folders.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not path.is_dir()


def open_image(path: Path) -> Image.Image:
    """Return an image as RGB, turned as its EXIF data say: what a viewer shows.

    Raises:
        AdaptError: If :func:`decode` cannot read it.
    """
    return upright(decode(path)).convert("RGB")


def upright(stored: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF data say."""
    return ImageOps.exif_transpose(stored)


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as a viewer shows it; its pixels are not decoded.

    Raises:
        AdaptError: If the file is missing, damaged, or no image.
    """
    with _opened(path) as file:
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (file.height, file.width) if turned else (file.width, file.height)


def decode(path: Path) -> Image.Image:
    """Return all pixels of an image file as they are stored, in a mode that converts to RGB.

    The one place where image files are opened: training, evaluation, calibration and prediction
    accept and refuse the same files.

    Raises:
        AdaptError: If the file is missing, damaged, no image, larger than
            :func:`max_megapixels`, or is gray of more than 8 bits.
    """
    with _opened(path) as file:
        _check_pixels(file, path)
        file.load()
        file.getexif()  # if it is damaged, nobody knows how the image is shown
        # Via RGBA, because a palette with transparency has no direct way to RGB.
        return file.convert("RGBA") if file.mode == "P" else file.copy()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=_formats()) as file:
            yield file
    except FileNotFoundError as error:
        raise AdaptError(f"image {path} does not exist; check the path") from error
    except AdaptError:  # a ValueError too
        raise
    except (*DAMAGE, OSError, SyntaxError, EOFError, struct.error, MemoryError) as error:
        reason = shorten(str(error), 200) or type(error).__name__
        raise AdaptError(f"image {path} cannot be decoded ({reason}); replace it") from error


@cache
def _formats() -> list[str]:
    Image.init()
    return sorted(FORMATS & Image.OPEN.keys())


def max_megapixels() -> float:
    """Return how large images may be, in 10^6 pixels: ``ADAPT_MAX_MEGAPIXELS``, or 500.

    Raises:
        AdaptError: If the variable holds no positive number.
    """
    text = os.environ.get("ADAPT_MAX_MEGAPIXELS", "500")
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise AdaptError(f"ADAPT_MAX_MEGAPIXELS must be a positive number, got {text!r}")
    return limit


def _check_pixels(file: Image.Image, path: Path) -> None:
    megapixels = file.width * file.height / 1e6
    if megapixels > max_megapixels():
        raise AdaptError(
            f"image {path} has {megapixels:,.0f} megapixels, more than the limit of "
            f"{max_megapixels():g}; scale it down, or raise the limit with ADAPT_MAX_MEGAPIXELS"
        )
    # Converted to 8 bits, Pillow would saturate them: 40000 becomes white, without a word.
    if file.mode[0] in "IF":
        raise AdaptError(
            f"image {path} has pixels of mode {file.mode}; convert it to 8 bits a channel"
        )
