"""How large are the objects of a data set in a detector's input, and which anchors match them?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig, RetinaNetConfig
from adapt.detector.retinanet import anchor_generator

MATCH = 0.5  # IoU at which RetinaNet trains an anchor to find a box
ANCHOR_SIZES = (6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Objects:
    """Images and single objects of a split, in pixels of the images.

    Attributes:
        images: ``float64[N, 2]``, height and width of every image as it is shown.
        boxes: ``float64[M, 2]``, height and width of every box.
        of_image: ``int64[M]``, the image of every box.
        labels: ``int64[M]``, the class of every box.
    """

    images: Floats
    boxes: Floats
    of_image: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, split: CocoSplit) -> "Objects":
        """Return what a split holds; crowds are no single objects."""
        images = [(image.height, image.width) for image in split.images]
        singles = [boxes.xyxy[~boxes.crowd] for boxes in split.boxes]
        corners = np.concatenate([np.empty((0, 4)), *singles])
        labels = [boxes.labels[~boxes.crowd] for boxes in split.boxes]
        return cls(
            np.array(images, float),
            (corners[:, 2:] - corners[:, :2])[:, ::-1],
            np.repeat(np.arange(len(singles)), [len(single) for single in singles]),
            np.concatenate([np.empty(0, np.int64), *labels]),
        )

    def fitted(self, size: InputSize) -> Floats:
        """Return ``float64[M, 2]``, height and width of every box in an input."""
        scales = np.array([size.scale(int(height), int(width)) for height, width in self.images])
        fitted: Floats = self.boxes * scales[self.of_image, None]
        return fitted

    def sides(self, size: InputSize) -> Floats:
        """Return ``float64[M]``, the square root of every box's area in an input."""
        sides: Floats = np.sqrt(self.fitted(size).prod(1))
        return sides

    def small_sides(self, size: InputSize, share: float) -> Floats:
        """Return of every class with a box the side that a share of its boxes falls below."""
        sides = self.sides(size)
        of_class = [sides[self.labels == label] for label in np.unique(self.labels)]
        return np.array([np.quantile(one, share) for one in of_class])


def anchor_shapes(anchor_size: int) -> Floats:
    """Return ``float64[levels, anchors, 2]``, height and width of the anchors of every level.

    Args:
        anchor_size: Side of the smallest anchor.
    """
    config = DetectorConfig(1, **RetinaNetConfig(anchor_size=anchor_size).to_dict())
    cells = anchor_generator(config).cell_anchors
    shapes: Floats = np.stack([(cell[:, 2:] - cell[:, :2]).numpy() for cell in cells])[..., ::-1]
    return shapes


def anchor_recall(boxes: Floats, anchor_size: int) -> float:
    """Return the share of boxes that some anchor of the same centre overlaps with enough to learn.

    It is an upper bound: anchors stand on a grid, and large ones do not fit into the input.

    Args:
        boxes: ``float64[M, 2]``, height and width in the input.
        anchor_size: Side of the smallest anchor.
    """
    best = np.zeros(len(boxes))
    for anchor in anchor_shapes(anchor_size).reshape(-1, 2):
        common = np.minimum(boxes, anchor).prod(1)
        best = np.maximum(best, common / (boxes.prod(1) + anchor.prod() - common))
    return float((best >= MATCH).mean())


def best_anchor(boxes: Floats) -> tuple[int, float]:
    """Return the anchor size of the highest recall, and the recall; of equal ones the largest.

    Args:
        boxes: ``float64[M, 2]``, height and width in the input.
    """
    recalls = {size: anchor_recall(boxes, size) for size in ANCHOR_SIZES}
    best = max(recalls, key=lambda size: (round(recalls[size], 3), size))
    return best, recalls[best]
