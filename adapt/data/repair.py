"""Which annotated boxes cannot be used as they are, and what becomes of them?"""

import math
from dataclasses import dataclass
from typing import Literal

from adapt.data.annotated_image import CocoImage

TOLERANCE = 1.0  # pixels a box may stick out of its image: annotation tools round

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Repair:
    """What loading did to a box that cannot be used as it is: clipped or dropped it."""

    image_id: int
    kind: Literal["clipped", "dropped"]
    reason: str
    corners: Box  # (x1, y1, x2, y2) as annotated


def repair_box(box: Box, image: CocoImage, what: str) -> tuple[Box, Repair | None]:
    """Return a box's corners, clipped to the image if they stick out more than the tolerance."""
    x, y, width, height = box
    corners = x, y, x + width, y + height
    inside = max(x, 0.0), max(y, 0.0), min(x + width, image.width), min(y + height, image.height)
    if not all(map(math.isfinite, box)):
        reason = f"{what} of numbers that are not finite"
        return corners, Repair(image.id, "dropped", reason, corners)
    if width < 0 or height < 0:
        return corners, Repair(image.id, "dropped", f"{what} of negative size", corners)
    if width == 0 or height == 0:
        return corners, Repair(image.id, "dropped", f"{what} of no size", corners)
    where = f"its image {image.path.name} of {image.width}x{image.height} pixels"
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return corners, Repair(image.id, "dropped", f"{what} outside of {where}", corners)
    if max(abs(a - b) for a, b in zip(corners, inside, strict=True)) > TOLERANCE:
        return inside, Repair(image.id, "clipped", f"{what} that sticks out of {where}", corners)
    return corners, None
