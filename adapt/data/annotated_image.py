"""How is an annotated image opened, so that its boxes fit it?"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adapt.data.images import decode, upright
from adapt.errors import AdaptError

SEE_CHECK = "(`adapt data check` lists all such images)"  # in errors about one image


@dataclass(frozen=True)
class CocoImage:
    """One image of a split; ``width`` and ``height`` are pixels as the annotations count them."""

    id: int
    path: Path
    width: int
    height: int


def read_image(image: CocoImage) -> Image.Image:
    """Decode an image as RGB, in the orientation that its annotations refer to.

    Raises:
        AdaptError: If the file is missing, corrupt, of more than 8 bits, or of another size.
    """
    return as_annotated(stored_image(image), image).convert("RGB")


def stored_image(image: CocoImage) -> Image.Image:
    """Return an annotated image as it is stored.

    Raises:
        AdaptError: If it cannot be read; with the command that finds all such images.
    """
    if not image.path.exists():
        raise AdaptError(
            f"image {image.path} does not exist; add it or remove its annotations {SEE_CHECK}"
        )
    try:
        return decode(image.path)
    except AdaptError as error:
        raise AdaptError(f"{error} {SEE_CHECK}") from error


def as_annotated(stored: Image.Image, image: CocoImage) -> Image.Image:
    """Return an image in the orientation its annotations refer to.

    That is what viewers show (EXIF's orientation), unless only the stored image has the annotated
    width and height.

    Raises:
        AdaptError: If neither orientation has the annotated size.
    """
    # COCO does not say whether EXIF's rotation comes before annotating, and tools differ: the width
    # and height in the JSON file decide where they can. A half turn, a mirroring and squares have
    # the same size both ways; there, people have drawn boxes on what they saw.
    expected = image.width, image.height
    for turned in (upright(stored), stored):
        if turned.size == expected:
            return turned
    raise AdaptError(
        f"image {image.path} is {stored.width}x{stored.height} pixels, its annotations say "
        f"{image.width}x{image.height}; correct one of them {SEE_CHECK}"
    )
