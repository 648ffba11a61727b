"""What mAP do detections reach?"""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from adapt.data.coco import CocoSplit, check_has_boxes
from adapt.data.coco_library import PYCOCOTOOLS, Library, fastest
from adapt.errors import AdaptError

COCO_DETECTIONS = 100  # per image, in COCO's own protocol


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one image, as tensors or arrays.

    Attributes:
        image_id: Id of the image in the split.
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
        ar100: Recall, averaged over the thresholds, with at most 100 detections per image.
        per_class: AP of every class by its name.
        max_detections: How many detections of an image count for AP.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float
    per_class: dict[str, float | None]
    max_detections: int = COCO_DETECTIONS

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def evaluate(
    split: CocoSplit, detections: Sequence[Detections], max_detections: int = COCO_DETECTIONS
) -> Metrics:
    """Compare detections with the boxes of a split, as pycocotools does.

    All images of the split count, those without detections too. A crowd box is not counted as
    missed, and detections inside it are not counted as wrong. The extra ``fast-eval`` takes a
    fraction of the time; its numbers are the same to 1e-12.

    Args:
        split: Images and boxes.
        detections: What was found in them.
        max_detections: How many detections of an image count, those of the highest scores: what the
            detector was asked for. COCO's own protocol has 100.

    Raises:
        AdaptError: If the split has no boxes, or detections do not belong to it.
    """
    evaluation = coco_evaluation(split, detections, max_detections, fastest())
    return metrics_of(evaluation, split.class_names)


def coco_evaluation(
    split: CocoSplit,
    detections: Sequence[Detections],
    max_detections: int = COCO_DETECTIONS,
    library: Library = PYCOCOTOOLS,
    *,
    any_size: bool = False,
) -> COCOeval:
    """Return an evaluation, accumulated; arguments and errors as :func:`evaluate`.

    Only pycocotools' own holds what was matched in which image (``evalImgs``). With ``any_size`` it
    leaves out objects of some sizes alone, which takes a quarter of the time and memory.
    """
    check_has_boxes(split)
    # Ids are counted anew: those of files may be texts, and pycocotools takes a match with
    # annotation 0 for no match.
    places = {image.id: place for place, image in enumerate(split.images, start=1)}
    results = [
        {"image_id": places[found.image_id], "category_id": label + 1, "bbox": box, "score": score}
        for found in _of_split(detections, split)
        for label, box, score in _rows(found, split)
    ]
    with redirect_stdout(io.StringIO()):  # pycocotools reports by printing
        truth = _indexed(library.coco(), _ground_truth(split))
        # loadRes fails on an empty list.
        detected = (
            truth.loadRes(results)
            if results
            else _indexed(library.coco(), _ground_truth(split, empty=True))
        )
        evaluation = library.evaluation(truth, detected, "bbox")
        evaluation.params.maxDets = sorted({min(COCO_DETECTIONS, max_detections), max_detections})
        if any_size:
            params = evaluation.params
            params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def coco_results(detections: Sequence[Detections], split: CocoSplit) -> list[dict[str, Any]]:
    """Return detections as COCO's results format: xywh boxes, image and category ids of the file.

    Detections of classes that the file does not list are left out.

    Raises:
        AdaptError: If an image, a label or a number does not belong to the split.
    """
    written = {image.id: image.annotated_id for image in split.images}
    return [
        {
            "image_id": written[found.image_id],
            "category_id": split.category_ids[label],
            "bbox": box,
            "score": score,
        }
        for found in _of_split(detections, split)
        for label, box, score in _rows(found, split)
        if split.category_ids[label] is not None
    ]


def _of_split(detections: Sequence[Detections], split: CocoSplit) -> Iterator[Detections]:
    known = set(split.image_ids)
    for of_image in detections:
        if of_image.image_id not in known:
            raise AdaptError(
                f"detections name image {of_image.image_id}, which {split.annotations} does not "
                "hold; evaluate the split they were made from"
            )
        yield of_image


def _rows(of_image: Detections, split: CocoSplit) -> Iterator[tuple[int, list[float], float]]:
    """Yield label, xywh box and score of every detection in an image."""
    boxes, scores, labels = map(_array, (of_image.boxes, of_image.scores, of_image.labels))
    assert len(boxes) == len(scores) == len(labels)
    boxes = boxes.reshape(-1, 4).astype(np.float64)
    _check_detections(boxes, scores, labels, of_image.image_id, split)
    boxes[:, 2:] -= boxes[:, :2]
    yield from zip(labels.tolist(), boxes.tolist(), scores.tolist(), strict=True)


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
    """Return the split in COCO's format, or the same without annotations; all ids from 1 on."""
    return {
        "info": {},
        "images": [
            {"id": place, "width": image.width, "height": image.height}
            for place, image in enumerate(split.images, start=1)
        ],
        "categories": [
            {"id": place, "name": name} for place, name in enumerate(split.class_names, start=1)
        ],
        "annotations": [] if empty else _annotations(split),
    }


def _annotations(split: CocoSplit) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for place, boxes in enumerate(split.boxes, start=1):
        for (x1, y1, x2, y2), label, crowd, area in zip(
            boxes.xyxy.tolist(),
            boxes.labels.tolist(),
            boxes.crowd.tolist(),
            boxes.areas.tolist(),
            strict=True,
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _indexed(coco: Any, dataset: dict[str, Any]) -> Any:
    coco.dataset = dataset
    coco.createIndex()
    return coco


def metrics_of(evaluation: COCOeval, class_names: Sequence[str]) -> Metrics:
    """Return the metrics of an evaluation.

    Args:
        evaluation: As :func:`coco_evaluation` returns it.
        class_names: Names of the classes in label order.
    """
    params = evaluation.params
    # Axes: IoU thresholds, recalls, classes in label order, sizes of objects, detections per image.
    precision = evaluation.eval["precision"][..., -1]
    recall = evaluation.eval["recall"]  # the same without recalls
    overall = precision[..., 0]
    at = {round(100 * iou): place for place, iou in enumerate(params.iouThrs)}
    small, medium, large = (_mean(precision[..., size]) for size in (1, 2, 3))
    class_aps = [_mean(overall[:, :, label]) for label in range(len(class_names))]
    return Metrics(
        ap=_mean(overall) or 0.0,
        ap50=_mean(overall[at[50]]) or 0.0,
        ap75=_mean(overall[at[75]]) or 0.0,
        ap_small=small,
        ap_medium=medium,
        ap_large=large,
        ar100=_mean(recall[:, :, 0, 0]) or 0.0,
        per_class=dict(zip(class_names, class_aps, strict=True)),
        max_detections=params.maxDets[-1],
    )


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean; pycocotools writes -1 where there is no object."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


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
