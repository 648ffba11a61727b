"""Which detections are right, and which objects were found, at an IoU of 0.5?"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

IOU = 0.5
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes of all images, the ignored ones left out: crowds, and detections in them.

    Attributes:
        images: ``int64[N]``, places of their images.
        labels: ``int64[N]``, their classes.
        xyxy: ``float64[N, 4]``, corners in pixels of the image.
        matched: ``bool[N]``: right, if they are detections; found, if they are objects.
        scores: ``float64[N]``; of an object, that of the detection that found it, or 0.
    """

    images: Ints
    labels: Ints
    xyxy: Floats
    matched: Bools
    scores: Floats

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, chosen: Any) -> "Boxes":
        """Return some of them."""
        return replace(self, **{name: values[chosen] for name, values in vars(self).items()})


@dataclass(frozen=True)
class Matches:
    """What was detected and what was there.

    Attributes:
        detections: All detections.
        objects: All objects.
        images: Number of images.
    """

    detections: Boxes
    objects: Boxes
    images: int


def by_image(boxes: Boxes, images: int) -> list[Ints]:
    """Return which of the boxes are in each image."""
    order = np.argsort(boxes.images, kind="stable")
    return np.split(order, np.searchsorted(boxes.images[order], np.arange(1, images)))


def matches(evaluation: COCOeval) -> Matches:
    """Return what pycocotools has matched.

    Args:
        evaluation: As :func:`adapt.data.evaluate.coco_evaluation` returns it.
    """
    found, there = list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    at = int(np.argmin(np.abs(evaluation.params.iouThrs - IOU)))
    places = {number: place for place, number in enumerate(evaluation.params.imgIds)}
    for one in _of_any_size(evaluation):
        where = places[one["image_id"]], one["category_id"] - 1
        ignored = one["dtIgnore"][at].astype(bool)
        rows = zip(one["dtIds"], one["dtMatches"][at] > 0, one["dtScores"], strict=True)
        found += [
            (*where, evaluation.cocoDt.anns[number]["bbox"], right, score)
            for (number, right, score), skip in zip(rows, ignored, strict=True)
            if not skip
        ]
        there += [
            (*where, evaluation.cocoGt.anns[number]["bbox"], match > 0, _score(evaluation, match))
            for number, match, skip in zip(
                one["gtIds"], one["gtMatches"][at], one["gtIgnore"], strict=True
            )
            if not skip
        ]
    return Matches(_boxes(found), _boxes(there), len(places))


def _score(evaluation: COCOeval, detection: float) -> float:
    """Return the score of a detection by its number; 0 is none."""
    return float(evaluation.cocoDt.anns[detection]["score"]) if detection else 0.0


def _of_any_size(evaluation: COCOeval) -> Iterator[dict[str, Any]]:
    """Yield the matches of every class and image; pycocotools orders by class, size, image."""
    images, sizes = len(evaluation.params.imgIds), len(evaluation.params.areaRng)
    for start in range(0, len(evaluation.evalImgs), images * sizes):
        yield from filter(None, evaluation.evalImgs[start : start + images])


def _boxes(rows: list[tuple[Any, ...]]) -> Boxes:
    corners = np.array([row[2] for row in rows], dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Boxes(
        images=np.array([row[0] for row in rows], dtype=np.int64),
        labels=np.array([row[1] for row in rows], dtype=np.int64),
        xyxy=corners,
        matched=np.array([row[3] for row in rows], dtype=np.bool_),
        scores=np.array([row[4] for row in rows], dtype=np.float64),
    )


def best_threshold(found: Matches) -> float:
    """Return the score from which on detections have the best F1, all classes together.

    Args:
        found: The matches; without a right detection, 0.5 is as good as any.
    """
    scores, right = found.detections.scores, found.detections.matched
    if not right.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + len(found.objects))
    return float(scores[order][int(np.argmax(f1))])


def agreement(found: Matches, threshold: float, images: int) -> Floats:
    """Return the F1 of every image, ``float64[images]``; 1 where nothing is and nothing is found.

    Args:
        found: The matches.
        threshold: Least score of a detection that counts.
        images: Number of images.
    """
    sure = found.detections.at(found.detections.scores >= threshold)
    hits = np.bincount(sure.images, sure.matched, images)
    both = np.bincount(sure.images, minlength=images) + np.bincount(
        found.objects.images, minlength=images
    )
    return np.where(both > 0, 2 * hits / np.maximum(both, 1), 1.0)
