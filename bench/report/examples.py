"""In which images do detections and objects agree best, and least?"""

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from adapt.data.annotated_image import CocoImage, read_image
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from bench.report.folder import Folder
from bench.report.found import Found
from bench.report.matches import Boxes, Floats, Matches, agreement, best_threshold
from bench.report.parts import Example, Examples, Mark, Section

SHOWN = 4  # of the best, and of the worst
WIDTH = 560  # pixels of a JPEG
QUALITY = 72
LEAD = (
    "Detections of {name} with a score of at least {threshold:.2f}, where it has the best F1 on "
    "these images. Green: right (IoU of 0.5 or more). Red, dashed: wrong, with class and score. "
    "Blue, dotted: an object that was missed. Images are ordered by F1, twice the right detections "
    "over all detections and objects."
)


def examples(folder: Folder, found: Found) -> Section:
    """Return the images of the best and of the worst agreement, of the best detector."""
    title, entry = "Best and worst images", folder.chosen
    if found.split is None:
        return Section("examples", title, missing=[found.why_not])
    held = found.matches[entry.name]
    threshold = best_threshold(held)
    f1 = agreement(held, threshold, len(found.split))
    sheets = {"Worst": worst(f1, held), "Best": best(f1, held)}
    lead = LEAD.format(name=entry.name, threshold=threshold)
    try:
        parts = [
            Examples(name, [_example(found.split, held, threshold, f1, place) for place in places])
            for name, places in sheets.items()
        ]
    except AdaptError as error:
        return Section("examples", title, missing=[f"The images cannot be read: {error}."])
    return Section("examples", title, [lead], parts)


def worst(f1: Floats, held: Matches) -> list[int]:
    """Return the images of the least F1; of equal ones those with more objects first."""
    return _ordered(f1, held)[: min(SHOWN, -(-len(f1) // 2))]


def best(f1: Floats, held: Matches) -> list[int]:
    """Return the images of the highest F1, none of which is among the worst."""
    order = sorted(_ordered(f1, held)[min(SHOWN, -(-len(f1) // 2)) :], key=lambda at: -f1[at])
    return order[:SHOWN]


def _ordered(f1: Floats, held: Matches) -> list[int]:
    objects = np.bincount(held.objects.images, minlength=len(f1))
    return sorted(range(len(f1)), key=lambda at: (f1[at], -objects[at]))


def _example(split: CocoSplit, held: Matches, threshold: float, f1: Floats, place: int) -> Example:
    image = split.images[place]
    sure = (held.detections.images == place) & (held.detections.scores >= threshold)
    there = held.objects.at(held.objects.images == place)
    found = held.detections.at(sure)
    missed = there.at(there.scores < threshold)
    marks = [*_detected(found, split.class_names), *_missed(missed, split.class_names)]
    caption = (
        f"{image.path.name}: F1 {f1[place]:.2f}; {int(found.matched.sum())} of {len(there)} "
        f"objects, {int((~found.matched).sum())} wrong"
    )
    return Example(_jpeg(image), image.width, image.height, marks, caption)


def _detected(found: Boxes, names: Sequence[str]) -> Iterator[Mark]:
    for box, label, right, score in zip(
        found.xyxy.tolist(), found.labels, found.matched, found.scores, strict=True
    ):
        yield _mark("right" if right else "wrong", box, f"{names[label]} {score:.2f}")


def _missed(missed: Boxes, names: Sequence[str]) -> Iterator[Mark]:
    for box, label in zip(missed.xyxy.tolist(), missed.labels, strict=True):
        yield _mark("missed", box, names[label])


def _mark(kind: str, box: Sequence[float], label: str) -> Mark:
    x1, y1, x2, y2 = (round(value, 1) for value in box)
    return Mark(kind, x1, y1, round(x2 - x1, 1), round(y2 - y1, 1), label)


def _jpeg(image: CocoImage) -> str:
    pixels = read_image(image)
    pixels.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    pixels.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
