"""What is wrong with a data set? (found before hours of training on it)"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags
from PIL.Image import Image

from adapt.data.annotated_image import CocoImage, as_annotated, stored_image
from adapt.data.coco import CocoSplit, ImageBoxes, load_split
from adapt.data.images import upright
from adapt.data.repair import TOLERANCE, Repair
from adapt.errors import AdaptError
from adapt.progress import Stage, silent_stage

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's limits of the areas of medium objects, square pixels


@dataclass(frozen=True)
class DataReport:
    """What a split holds, and what is wrong with it.

    Attributes:
        problems: What stops a training; one sentence each, with file, value and fix.
        warnings: What does not stop a training but may be a mistake; one sentence each.
    """

    annotations: str
    images: int
    empty_images: int
    grayscale_images: int
    rotated_images: int
    unreadable_images: int
    mismatched_images: int
    boxes: int
    crowd_boxes: int
    duplicate_boxes: int
    clipped_boxes: int
    dropped_boxes: int
    boxes_per_class: dict[str, int]
    boxes_per_size: dict[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {**asdict(self), "problems": list(self.problems), "warnings": list(self.warnings)}


def check_data(
    root: Path, splits: Sequence[str], *, stage: Stage = silent_stage
) -> dict[str, DataReport]:
    """Check splits of a data set, by name.

    Args:
        root: Folder of the data set.
        splits: Their names.
        stage: Opens the progress display of a split.

    Raises:
        AdaptError: If a split is missing or its annotations cannot be read.
    """
    reports = {}
    for name in splits:
        split = load_split(root, name)
        with stage(f"check {name}") as progress:
            reports[name] = check_split(split, progress)
    return reports


def check_split(split: CocoSplit, progress: Callable[[int, int], None] | None = None) -> DataReport:
    """Open every image of a split and report all that is wrong with it.

    Args:
        split: The split, as loaded.
        progress: Called with the number of images done and the number of all.
    """
    findings = []
    for done, image in enumerate(split.images, start=1):
        findings.append(_inspect(image))
        if progress is not None:
            progress(done, len(split))
    image_kinds = Counter(kind for finding in findings for kind in finding.kinds)
    repaired = Counter(repair.kind for repair in split.repairs)
    per_class = _boxes_per_class(split)
    duplicates = sum(map(_count_duplicates, split.boxes))
    boxes = sum(map(len, split.boxes))
    problems = [finding.problem for finding in findings if finding.problem]
    if not any(per_class.values()):
        problems.append(f"{split.annotations} holds no boxes of single objects; annotate some")
    return DataReport(
        annotations=str(split.annotations),
        images=len(split),
        empty_images=sum(not len(image_boxes) for image_boxes in split.boxes),
        grayscale_images=image_kinds["grayscale"],
        rotated_images=image_kinds["rotated"],
        unreadable_images=image_kinds["unreadable"],
        mismatched_images=image_kinds["mismatched"],
        boxes=boxes,
        crowd_boxes=boxes - sum(per_class.values()),
        duplicate_boxes=duplicates,
        clipped_boxes=repaired["clipped"],
        dropped_boxes=repaired["dropped"],
        boxes_per_class=per_class,
        boxes_per_size=_boxes_per_size(split),
        problems=(*problems, *_turned_problems(split, findings), *_repair_problems(split)),
        warnings=(
            *_orientation_warnings(findings),
            *_box_warnings(split, per_class, duplicates),
        ),
    )


@dataclass(frozen=True)
class _Finding:
    """What an image is (such as ``grayscale``), and why it cannot be used."""

    kinds: tuple[str, ...]
    problem: str = ""
    path: Path = Path()


def _inspect(image: CocoImage) -> _Finding:
    try:
        stored = stored_image(image)
    except AdaptError as error:
        return _Finding(("unreadable",), str(error))
    kinds = ("grayscale",) if stored.mode in ("1", "L", "LA") else ()
    if stored.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        kinds = (*kinds, "rotated", _orientation(stored, image))
    try:
        as_annotated(stored, image)
    except AdaptError as error:
        return _Finding((*kinds, "mismatched"), str(error))
    return _Finding(kinds, path=image.path)


def _orientation(stored: Image, image: CocoImage) -> str:
    """Say how the annotated size decides on an image that its EXIF data turn."""
    if upright(stored).size == stored.size:
        return "undecided"
    return "as stored" if stored.size == (image.width, image.height) else "as shown"


def _orientation_warnings(findings: Sequence[_Finding]) -> list[str]:
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


def _turned_problems(split: CocoSplit, findings: Sequence[_Finding]) -> list[str]:
    """Name the likely cause where boxes fit the image as EXIF turns it, and not as it is stored."""
    repairs: dict[int, list[Repair]] = defaultdict(list)
    for repair in split.repairs:
        repairs[repair.image_id].append(repair)
    swapped = [
        image
        for image, finding in zip(split.images, findings, strict=True)
        if "as stored" in finding.kinds
        and repairs[image.id]
        and all(_fits(repair.corners, image.height, image.width) for repair in repairs[image.id])
    ]
    if not swapped:
        return []
    first = swapped[0]
    return [
        f"{len(swapped)} images have boxes that fit them only as their EXIF orientation turns them "
        f"(the first: {first.path}); their annotations give width and height as stored, "
        f"{first.width}x{first.height}: write {first.height}x{first.width}"
    ]


def _fits(corners: tuple[float, ...], width: int, height: int) -> bool:
    x1, y1, x2, y2 = corners
    inside = min(x1, y1) >= -TOLERANCE and x2 <= width + TOLERANCE and y2 <= height + TOLERANCE
    return inside and x1 < x2 and y1 < y2


def _boxes_per_class(split: CocoSplit) -> dict[str, int]:
    labels = np.concatenate([boxes.labels[~boxes.crowd] for boxes in split.boxes])
    counts = np.bincount(labels, minlength=len(split.class_names))
    return dict(zip(split.class_names, map(int, counts), strict=True))


def _boxes_per_size(split: CocoSplit) -> dict[str, int]:
    areas = np.concatenate([boxes.areas[~boxes.crowd] for boxes in split.boxes])
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}


def _count_duplicates(boxes: ImageBoxes) -> int:
    rows = np.column_stack((boxes.labels, boxes.crowd, boxes.xyxy))
    return len(rows) - len(np.unique(rows, axis=0))


def _repair_problems(split: CocoSplit) -> list[str]:
    problems = []
    for kind, what in (("clipped", "stick out of their image"), ("dropped", "cannot be used")):
        reasons = [repair.reason for repair in split.repairs if repair.kind == kind]
        if reasons:
            problems.append(
                f"{len(reasons)} boxes {what}, the first: {reasons[0]}; correct them, or set "
                "data.repair = true in the recipe"
            )
    return problems


def _box_warnings(split: CocoSplit, per_class: dict[str, int], duplicates: int) -> list[str]:
    warnings = []
    if split.root_category:
        warnings.append(
            f"category {split.root_category!r} of {split.annotations} has no box and is the "
            "supercategory of all others; it is not counted as a class"
        )
    if duplicates:
        warnings.append(f"{split.annotations} repeats {duplicates} boxes; remove the copies")
    absent = [name for name, count in per_class.items() if not count]
    if absent:
        warnings.append(
            f"{split.annotations} has no box of {len(absent)} classes ({', '.join(absent[:5])}"
            f"{', ...' if len(absent) > 5 else ''}); no AP can be given for them"
        )
    return warnings
