"""What mAP do detections reach?"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError

AR100 = 8  # place of AR at 100 detections among pycocotools' twelve statistics


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, as tensors or arrays.

    Attributes:
        image_id: Id of the image in the annotation file.
        boxes: ``float[N, 4]``, xyxy in pixels of the original image.
        scores: ``float[N]``.
        labels: ``int[N]``, 0 to K - 1.
    """

    image_id: int
    boxes: Tensor | NDArray[Any]
    scores: Tensor | NDArray[Any]
    labels: Tensor | NDArray[Any]


@dataclass(frozen=True)
class Metrics:
    """COCO's box metrics, from 0 to 1; ``None`` where the ground truth has no such object.

    Attributes:
        ap: AP averaged over the IoU thresholds 0.50 to 0.95.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ap_small: AP of objects below 32 x 32 square pixels.
        ap_medium: AP of objects in between.
        ap_large: AP of objects above 96 x 96 square pixels.
        ar100: Recall, averaged over the thresholds, with 100 detections per image.
        per_class: AP of every class by its name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float
    per_class: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def evaluate(split: CocoSplit, detections: Sequence[Detections]) -> Metrics:
    """Compare detections with the boxes of a split by pycocotools.

    All images of the split count, those without detections too. A crowd box is not counted as
    missed, and detections inside it are not counted as wrong.

    Raises:
        AdaptError: If the split has no boxes, or detections do not belong to it.
    """
    if not any((~boxes.crowd).any() for boxes in split.boxes):
        raise AdaptError(f"{split.annotations} has no boxes to evaluate; choose a split with boxes")
    results = coco_results(detections, split)
    with redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        truth = _coco_api(_ground_truth(split))
        # loadRes fails on an empty list.
        detected = (
            truth.loadRes(results) if results else _coco_api(_ground_truth(split, empty=True))
        )
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return _metrics(evaluation, split.class_names)


def coco_results(detections: Sequence[Detections], split: CocoSplit) -> list[dict[str, Any]]:
    """Return detections as COCO's results format: xywh boxes and the file's category ids.

    Raises:
        AdaptError: If an image, a label or a number does not belong to the split.
    """
    known = set(split.image_ids)
    results: list[dict[str, Any]] = []
    for of_image in detections:
        image_id = of_image.image_id
        if image_id not in known:
            raise AdaptError(
                f"detections name image {image_id}, which {split.annotations} does not hold; "
                "evaluate the split they were made from"
            )
        results.extend(_image_results(of_image, split))
    return results


def _image_results(of_image: Detections, split: CocoSplit) -> list[dict[str, Any]]:
    boxes, scores, labels = map(_array, (of_image.boxes, of_image.scores, of_image.labels))
    assert len(boxes) == len(scores) == len(labels)
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    _check_detections(boxes, scores, labels, of_image.image_id, split)
    boxes[:, 2:] -= boxes[:, :2]
    rows = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {
            "image_id": of_image.image_id,
            "category_id": split.category_ids[label],
            "bbox": box,
            "score": score,
        }
        for box, score, label in rows
    ]


def _check_detections(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    image_id: int,
    split: CocoSplit,
) -> None:
    classes = len(split.category_ids)
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise AdaptError(
            f"a detection in image {image_id} has label {wrong[0]}, {split.annotations} has labels "
            f"0 to {classes - 1}; evaluate on the classes the detector was trained for"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise AdaptError(
            f"detections in image {image_id} of {split.annotations} are not finite numbers; "
            "check that the training has not diverged"
        )


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _ground_truth(split: CocoSplit, *, empty: bool = False) -> dict[str, Any]:
    """Return the split in COCO's format, or the same without annotations."""
    names = zip(split.category_ids, split.class_names, strict=True)
    return {
        "info": {},
        "images": [
            {"id": image.id, "width": image.width, "height": image.height} for image in split.images
        ],
        "categories": [{"id": number, "name": name} for number, name in names],
        "annotations": [] if empty else _annotations(split),
    }


def _annotations(split: CocoSplit) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for image, boxes in zip(split.images, split.boxes, strict=True):
        for (x1, y1, x2, y2), label, crowd, area in zip(
            boxes.xyxy.tolist(), boxes.labels, boxes.crowd, boxes.areas.tolist(), strict=True
        ):
            annotations.append(
                {
                    # Counted anew: pycocotools takes a match with annotation 0 for no match.
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": split.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _coco_api(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


def _metrics(evaluation: COCOeval, class_names: Sequence[str]) -> Metrics:
    ap, ap50, ap75, *ap_sizes = evaluation.stats[:6].tolist()
    # Axes: IoU thresholds, recalls, classes in ascending id (= label) order, sizes, detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    class_aps = precision.mean(axis=(0, 1)).tolist()
    small, medium, large, *class_aps = [
        None if value < 0 else value for value in (*ap_sizes, *class_aps)
    ]
    return Metrics(
        ap=ap,
        ap50=ap50,
        ap75=ap75,
        ap_small=small,
        ap_medium=medium,
        ap_large=large,
        ar100=float(evaluation.stats[AR100]),
        per_class=dict(zip(class_names, class_aps, strict=True)),
    )


def detections_to_original(
    boxes: Tensor, factors: Tensor | Sequence[float], width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Convert boxes from pixels of the detector's input to pixels of the original image.

    Args:
        boxes: ``Tensor[N, 4]`` xyxy in input pixels.
        factors: (x, y) from image to input, as :func:`adapt.data.images.fit` returns them.
        width: Width of the original image in pixels.
        height: Its height.

    Returns:
        ``Tensor[N, 4]`` in pixels of the original image, clipped to it, and bool ``Tensor[N]``:
        which of them have an area there. What lies in the padding alone is no detection.
    """
    scale = torch.as_tensor(factors, dtype=boxes.dtype, device=boxes.device).repeat(2)
    clipped: Tensor = clip_boxes_to_image(boxes / scale, (height, width))
    return clipped, (clipped[:, 2:] > clipped[:, :2]).all(dim=1)
