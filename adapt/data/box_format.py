"""Are boxes written in another form than x, y, width and height in pixels?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapt.data.repair import TOLERANCE, Box, Problem

LEAST_BOXES = 10  # fewer may fit another form by chance
MOST, SOME = 0.95, 0.1  # shares of boxes that fit another form, and that do not fit COCO's
CORNER = 2 / 3  # share of width and height that boxes rarely all keep to
PIXELS = "COCO's boxes are [x, y, width, height] in pixels"


def box_format_problem(
    boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], file: Path
) -> Problem | None:
    """Name the likely cause where the boxes of a file fit another form than COCO's.

    Such boxes must not be repaired one by one: what is left of them lies in the wrong place.

    Args:
        boxes: Four numbers of each box, as annotated.
        sizes: Width and height of its image in pixels.
        file: The annotation file.
    """
    numbers = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    widths, heights = np.array(sizes, dtype=np.float64).reshape(-1, 2).T
    usable = np.isfinite(numbers).all(axis=1)
    a, b, c, d = numbers[usable].T
    widths, heights = widths[usable], heights[usable]
    if _are_fractions(numbers[usable]):
        return _problem(file, len(a), "fractions of the image (none is above 1)")
    if len(a) < LEAST_BOXES or _inside(a, b, a + c, b + d, widths, heights).mean() > 1 - SOME:
        return None
    forms = {
        "[x1, y1, x2, y2] of two corners": (a, b, c, d),
        "[x, y, width, height] of the middle": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }
    for form, corners in forms.items():
        if _inside(*corners, widths, heights).mean() >= MOST:
            return _problem(file, len(a), form)
    return None


def corner_doubt(ends: NDArray[np.float64], file: Path) -> str:
    """Say in one line that all boxes lie at the upper left; empty if they do not, or are few.

    No box of annotations made on smaller copies of the images, or in percent, leaves its image.

    Args:
        ends: ``float64[N, 2]``, right and lower end of every box as fractions of its image.
        file: The annotation file.
    """
    if len(ends) < LEAST_BOXES or ends.max() > CORNER:
        return ""
    right, low = ends.max(axis=0)
    return (
        f"all {len(ends)} boxes of {file} lie in the left {right:.0%} and the upper {low:.0%} of "
        "their images; boxes of smaller copies of the images, or in percent, look like that"
    )


def _are_fractions(boxes: NDArray[np.float64]) -> bool:
    sized = boxes[(boxes[:, 2:] > 0).all(axis=1)]
    within = bool(len(sized)) and bool((abs(sized) <= 1).all())
    return within and bool((sized % 1 > 0).any())


def _inside(
    x1: NDArray[np.float64],
    y1: NDArray[np.float64],
    x2: NDArray[np.float64],
    y2: NDArray[np.float64],
    widths: NDArray[np.float64],
    heights: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Return which boxes have a size and lie in their image."""
    starts = (x1 >= -TOLERANCE) & (y1 >= -TOLERANCE) & (x1 < x2) & (y1 < y2)
    within: NDArray[np.bool_] = starts & (x2 <= widths + TOLERANCE) & (y2 <= heights + TOLERANCE)
    return within


def _problem(file: Path, count: int, form: str) -> Problem:
    message = f"the {count} boxes of {file} look like {form}"
    fix = f"{PIXELS}: convert them"
    return Problem("files with boxes of another form", message, fix, "refused")
