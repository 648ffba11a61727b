"""How much AP does each type of error cost a detector?

The types, thresholds and what correcting one means are those of TIDE (Bolya et al., ECCV 2020,
section 2). Its package has had no release since then and no types, and matches detections anew;
here they are pycocotools' matches, so that AP before a correction is the report's AP50.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from bench.report.matches import Bools, Boxes, Floats, Ints, Matches, by_image

FORE, BACK = 0.5, 0.1  # IoU from which on a box is on an object, and below which it is on none
RIGHT, NONE = "right", -1
Names = NDArray[np.str_]
TYPES = {
    "class": "on an object, but of another class",
    "location": "of the right class, but only partly on an object (IoU 0.1 to 0.5)",
    "both": "only partly on an object, and of another class",
    "duplicate": "on an object that a detection of a higher score has found",
    "background": "on no object",
    "missed": "an object that no detection, nor one of a wrong class or place, belongs to",
}


@dataclass(frozen=True)
class ErrorCosts:
    """What errors cost.

    Attributes:
        ap50: AP at an IoU of 0.5, from 0 to 1.
        costs: By how much it would rise if all errors of one type were corrected, by its name.
    """

    ap50: float
    costs: dict[str, float]


@dataclass(frozen=True, eq=False)
class Judged:
    """Detections with the type of their error.

    Attributes:
        found: The matches.
        types: ``str[N]``, the type of every detection's error, or ``right``.
        targets: ``int64[N]``, the object that a wrong class or location belongs to; -1 of others.
    """

    found: Matches
    types: Names
    targets: Ints


def error_costs(found: Matches) -> ErrorCosts:
    """Return what each type of error costs, each corrected alone.

    Args:
        found: Detections and objects, as :func:`bench.report.matches.matches` returns them.
    """
    judged, before = judge(found), _mean_ap(found, found)
    costs = {kind: _mean_ap(_corrected(judged, kind), found) - before for kind in TYPES}
    return ErrorCosts(before, costs)


def judge(found: Matches) -> Judged:
    """Return the type of every detection's error."""
    types = np.full(len(found.detections), "background", dtype="<U10")
    targets = np.full(len(found.detections), NONE, dtype=np.int64)
    places = (by_image(boxes, found.images) for boxes in (found.detections, found.objects))
    for here, there in zip(*places, strict=True):
        if len(here):
            types[here], targets[here] = _judged(
                found.detections.at(here), found.objects.at(there), there
            )
    return Judged(found, types, targets)


def _judged(detections: Boxes, objects: Boxes, numbers: Ints) -> tuple[Names, Ints]:
    """Return types and targets of the detections in one image; ``numbers`` are its objects."""
    overlaps = _overlaps(detections, objects)
    alike = detections.labels[:, None] == objects.labels
    same, other = np.where(alike, overlaps, 0.0), np.where(alike, 0.0, overlaps)
    best, best_other = same.max(axis=1, initial=0), other.max(axis=1, initial=0)
    conditions = {
        RIGHT: detections.matched,
        "location": (best >= BACK) & (best < FORE),
        "class": best_other >= FORE,
        "duplicate": best >= FORE,
        "both": best_other >= BACK,
    }
    types = np.select(list(conditions.values()), list(conditions), "background")
    targets = np.full(len(detections), NONE, dtype=np.int64)
    for kind, of in (("location", same), ("class", other)):
        if (wrong := types == kind).any():
            targets[wrong] = numbers[of[wrong].argmax(axis=1)]
    return types, targets


def _overlaps(detections: Boxes, objects: Boxes) -> Floats:
    overlaps: Floats = box_iou(*map(torch.from_numpy, (detections.xyxy, objects.xyxy))).numpy()
    return overlaps


def _corrected(judged: Judged, kind: str) -> Matches:
    """Return the matches as they were without errors of one type (section 2.2 of the paper)."""
    found, objects = judged.found, judged.found.objects
    if kind == "missed":
        claimed = np.isin(np.arange(len(objects)), judged.targets)
        return replace(found, objects=objects.at(objects.matched | claimed))
    wrong = np.flatnonzero(judged.types == kind)
    labels, matched = found.detections.labels.copy(), found.detections.matched.copy()
    kept = judged.types != kind
    if kind in ("class", "location"):
        # The best detection of an object that was not found takes its class and place.
        wrong = wrong[np.argsort(-found.detections.scores[wrong], kind="stable")]
        targets, first = np.unique(judged.targets[wrong], return_index=True)
        taken = ~objects.matched[targets]
        right = wrong[first][taken]
        labels[right], matched[right] = objects.labels[targets[taken]], True
        kept[right] = True
    detections = replace(found.detections, labels=labels, matched=matched)
    return replace(found, detections=detections.at(kept))


def _mean_ap(found: Matches, original: Matches) -> float:
    """Return the mean AP of the classes that have objects originally."""
    aps = []
    for label in np.unique(original.objects.labels):
        of_class = found.detections.at(found.detections.labels == label)
        objects = int((found.objects.labels == label).sum())
        aps.append(average_precision(of_class.scores, of_class.matched, objects))
    return float(np.mean(aps)) if aps else 0.0


def average_precision(scores: Floats, right: Bools, objects: int) -> float:
    """Return COCO's AP of one class at one IoU: precision at 101 recalls.

    Args:
        scores: ``float64[N]`` of the detections.
        right: ``bool[N]``: which of them are right.
        objects: Number of objects; where there is none, 1 if nothing was detected, or 0.
    """
    if not objects:
        return float(not len(scores))
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    precision = hits / np.arange(1, len(order) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    places = np.searchsorted(hits / objects, np.linspace(0, 1, 101), side="left")
    return float(envelope[places].mean())
