"""What is wrong with annotations, and what does `data.repair` do about it?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from adapt.data.annotated_image import CocoImage
from adapt.errors import AdaptError

TOLERANCE = 1.0  # pixels a box may stick out of its image: annotation tools round
HOW = "data.repair = true in the recipe (--repair of `adapt eval`, `bench` and `export`)"

Box = tuple[float, float, float, float]
Remedy = Literal["clipped", "left out", "refused"]
REMEDIES: dict[Remedy, str] = {
    "clipped": f"correct it, or set {HOW} to cut it at the border of the image",
    "left out": f"correct it, or set {HOW} to leave it out",
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a data set.

    Attributes:
        kind: What it is, in words that follow a number: ``boxes of no size``.
        message: What is wrong where, with the value and the file.
        fix: What to do, as the end of the sentence.
        remedy: What repairing does with it; ``refused``: nothing, it must be corrected.
        image_id: The image it concerns, if it is one's.
        corners: (x1, y1, x2, y2) of the box it concerns, as annotated.
    """

    kind: str
    message: str
    fix: str = REMEDIES["left out"]
    remedy: Remedy = "left out"
    image_id: int | None = None
    corners: Box | None = None

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}"


class UnusableError(AdaptError):
    """An entry of an annotation file cannot be used; carries what is wrong with it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


def refuse(problems: Sequence[Problem], *, repair: bool) -> None:
    """Refuse a data set that has problems.

    Args:
        problems: All of them.
        repair: Whether those that can be repaired are accepted.

    Raises:
        AdaptError: With the first problem, and the number of others.
    """
    stopping = [p for p in problems if not repair or p.remedy == "refused"]
    if stopping:
        others = len(stopping) - 1
        more = f" ({others} more problems; `adapt data check` lists them all)" if others else ""
        raise AdaptError(f"{stopping[0]}{more}")


def usable_box(box: Box, image: CocoImage, told: Callable[[], str]) -> tuple[Box, Problem | None]:
    """Return a box's corners, clipped to the image if they stick out more than the tolerance.

    Args:
        box: (x, y, width, height) in pixels.
        image: Its image.
        told: Returns the beginning of a sentence about it.

    Returns:
        (x1, y1, x2, y2), and the problem with it, if any.
    """
    x, y, width, height = box
    corners = x, y, x + width, y + height
    inside = max(x, 0.0), max(y, 0.0), min(x + width, image.width), min(y + height, image.height)
    if corners == inside and width > 0 and height > 0:
        return corners, None  # nearly all of a million
    where = f"its image {image.path.name} of {image.width}x{image.height} pixels"
    fault = _fault(box, inside)
    if fault:
        message = f"{told()} {fault.replace('their image', where)}"
        return corners, Problem(f"boxes {fault}", message, image_id=image.id, corners=corners)
    if max(abs(a - b) for a, b in zip(corners, inside, strict=True)) <= TOLERANCE:
        return corners, None
    kind, message = "boxes that stick out of their image", f"{told()} that sticks out of {where}"
    return inside, Problem(kind, message, REMEDIES["clipped"], "clipped", image.id, corners)


def _fault(box: Box, inside: Box) -> str:
    """Say why nothing of a box can be used; empty if something can."""
    if not all(map(math.isfinite, box)):
        return "of numbers that are not finite"
    if min(box[2:]) < 0:
        return "of negative size"
    if min(box[2:]) == 0:
        return "of no size"
    return "outside of their image" if inside[0] >= inside[2] or inside[1] >= inside[3] else ""
