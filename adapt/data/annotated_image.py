"""How is an annotated image opened, so that its boxes fit it?"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from adapt.data.images import SUFFIXES, decode, upright
from adapt.data.inside import check_link
from adapt.data.paths import exists
from adapt.errors import AdaptError

SEE_CHECK = "(`adapt data check` lists all such images)"  # in errors about one image


@dataclass(frozen=True)
class CocoImage:
    """One image of a split.

    Attributes:
        id: Its number, the file's id where that is an integer of 64 bits.
        path: The image file.
        width: Pixels, as the annotations count them.
        height: Pixels, as the annotations count them.
        written_id: The id in the annotation file, if it is another one.
        folders: The folders that it may not lead out of, if it is a link.
    """

    id: int
    path: Path
    width: int
    height: int
    written_id: int | str | None = None
    folders: tuple[Path, ...] = ()

    @property
    def annotated_id(self) -> int | str:
        """The id that the annotation file gives the image."""
        return self.id if self.written_id is None else self.written_id

    def checked_path(self) -> Path:
        """Return the image file, to be opened.

        Raises:
            AdaptError: If it is a link that leads out of the data set's folder.
        """
        if self.folders:
            check_link(self.path, self.folders)
        return self.path


def read_image(image: CocoImage) -> Image.Image:
    """Decode an image as RGB, in the orientation that its annotations refer to.

    Raises:
        AdaptError: If the file is missing, corrupt, of more than 8 bits, or of another size.
    """
    return as_annotated(stored_image(image), image).convert("RGB")


def stored_image(image: CocoImage) -> Image.Image:
    """Return an annotated image as it is stored.

    Raises:
        AdaptError: If it cannot be read, or is a link that leads out of the data set's folder; with
            the command that finds all such images.
    """
    if not exists(image.path):
        raise AdaptError(
            f"image {image.path} does not exist{_similar(image.path)}; add it or remove its "
            f"annotations {SEE_CHECK}"
        )
    try:
        return decode(image.checked_path())
    except AdaptError as error:
        raise AdaptError(f"{error} {SEE_CHECK}") from error


def _similar(path: Path) -> str:
    """Name the file that may be meant where one is missing: of another case, ending or folder."""
    name = re.split(r"[\\/]", str(path))[-1]
    folder = next((place for place in path.parents if place.is_dir()), None)
    if folder is None or not (stem := Path(name).stem):
        return ""
    found = _by_stem(folder, folder.stat().st_mtime_ns).get(stem.strip().casefold())
    return f" (is {folder / found} meant?)" if found else ""


@lru_cache(maxsize=4)
def _by_stem(folder: Path, changed: int) -> dict[str, str]:
    """Return the image files of a folder; thousands of missing images ask for the same one."""
    names = (Path(name) for name in os.listdir(folder))
    return {name.stem.casefold(): name.name for name in names if name.suffix.lower() in SUFFIXES}


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
