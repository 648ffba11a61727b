"""Which images of a split cannot be read, or leave a doubt about how to read them?"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags
from PIL.Image import Image

from adapt.data.alike import Hashes, difference_hash
from adapt.data.annotated_image import CocoImage, as_annotated, stored_image
from adapt.data.images import upright
from adapt.data.paths import exists
from adapt.data.repair import TOLERANCE, Problem
from adapt.errors import AdaptError


@dataclass(frozen=True)
class ImageFinding:
    """What an image is (such as ``grayscale``), how it looks, and why it cannot be used."""

    image: CocoImage
    kinds: tuple[str, ...]
    problem: Problem | None = None
    look: Hashes | None = None

    @property
    def path(self) -> Path:
        """The image file."""
        return self.image.path


def inspect_image(image: CocoImage) -> ImageFinding:
    """Open an image and say what it is."""
    try:
        stored = stored_image(image)
    except AdaptError as error:
        missing = not exists(image.path)
        kind = "missing images" if missing else "images that cannot be read"
        return ImageFinding(image, ("unreadable",), _problem(kind, error, image))
    kinds = ("grayscale",) if stored.mode in ("1", "L", "LA") else ()
    if stored.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        kinds = (*kinds, "rotated", _orientation(stored, image))
    try:
        as_annotated(stored, image)
    except AdaptError as error:
        problem = _problem("images of another size than annotated", error, image)
        return ImageFinding(image, (*kinds, "mismatched"), problem)
    return ImageFinding(image, kinds, look=difference_hash(upright(stored)))


def _problem(kind: str, error: AdaptError, image: CocoImage) -> Problem:
    # The report is the list that errors about one image point to.
    message, _, fix = str(error).partition(" (`adapt data check`")[0].rpartition("; ")
    return Problem(kind, message, fix, "refused", image.id)


def _orientation(stored: Image, image: CocoImage) -> str:
    """Say how the annotated size decides on an image that its EXIF data turn."""
    if upright(stored).size == stored.size:
        return "undecided"
    return "as stored" if stored.size == (image.width, image.height) else "as shown"


def orientation_warnings(findings: Sequence[ImageFinding]) -> list[str]:
    """Say how images are read whose EXIF data and annotations leave a doubt."""
    texts = {
        "undecided": "have the same width and height with and without their EXIF orientation (the "
        "first: {}); they are read as viewers show them, boxes must be drawn on that",
        "as stored": "are turned by their EXIF orientation, but have the annotated width and "
        "height as they are stored (the first: {}); they are read as stored",
    }
    warnings = []
    for kind, text in texts.items():
        paths = [finding.path for finding in findings if kind in finding.kinds]
        if paths:
            warnings.append(f"{len(paths)} images {text.format(paths[0])}")
    return warnings


def turned_problems(problems: Sequence[Problem], findings: Iterable[ImageFinding]) -> list[Problem]:
    """Name the likely cause where boxes fit the image as EXIF turns it, and not as it is stored.

    Args:
        problems: Those of the annotations.
        findings: What images are.
    """
    corners: dict[int | None, list[tuple[float, ...]]] = defaultdict(list)
    for problem in problems:
        if problem.corners is not None:
            corners[problem.image_id].append(problem.corners)
    return [
        Problem(
            "images whose boxes fit them only as their EXIF orientation turns them",
            f"the boxes of image {image.path} fit it as viewers show it, its annotations give "
            f"width and height as stored, {image.width}x{image.height}",
            f"write {image.height}x{image.width} as their width and height",
            "refused",
            image.id,
        )
        for image, kinds in ((finding.image, finding.kinds) for finding in findings)
        if "as stored" in kinds
        and corners[image.id]
        and all(_fits(box, image.height, image.width) for box in corners[image.id])
    ]


def _fits(corners: tuple[float, ...], width: int, height: int) -> bool:
    x1, y1, x2, y2 = corners
    inside = min(x1, y1) >= -TOLERANCE and x2 <= width + TOLERANCE and y2 <= height + TOLERANCE
    return inside and x1 < x2 and y1 < y2
