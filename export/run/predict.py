"""How are a detector's detections in images drawn, and written as JSON?"""

from collections.abc import Iterator, Sequence
from itertools import islice, tee
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from adapt.artifacts import atomic_path, make_folder, write_json
from adapt.data.drawing import draw_boxes
from adapt.data.images import open_image
from adapt.detector.file import DetectorInfo
from adapt.progress import Progress, silent
from export.run.inference import Runner


def predict(
    runner: Runner,
    images: Sequence[Path],
    out: Path,
    *,
    score_threshold: float = 0.3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draw what a detector finds in images, and write it as JSON in COCO's layout.

    ``predictions.json`` is a COCO annotation file, which pycocotools opens: ``images`` (id counted
    from 1, file name, size), ``categories``, and ``annotations`` with ``bbox`` [x, y, width,
    height] in pixels of the image, and ``score``. Category ids are those of the training images'
    annotation file; where the detector file does not know them, they are counted from 1, and
    ``info`` says so.

    Args:
        runner: An open runner; the images of its batch share an inference.
        images: Image files.
        out: Folder of the drawn images and ``predictions.json``.
        score_threshold: Detections below are neither drawn nor written.
        progress: Called with (done, total) after every image.

    Returns:
        The JSON content.

    Raises:
        AdaptError: If an image cannot be read or ``out`` cannot be written.
    """
    make_folder(out)
    classes, ids = runner.info.classes, runner.info.written_ids
    content: dict[str, Any] = {
        "info": {"description": f"category ids are {category_ids_described(runner.info)}"},
        "images": [],
        "categories": [{"id": n, "name": name} for n, name in zip(ids, classes, strict=True)],
        "annotations": [],
    }
    opened, shown = tee(map(open_image, images))
    found = _detect(runner, opened, score_threshold)
    for number, (path, image, detections) in enumerate(
        zip(images, shown, found, strict=True), start=1
    ):
        content["images"].append(
            {"id": number, "file_name": str(path), "width": image.width, "height": image.height}
        )
        for annotation in _annotations(number, ids, *detections):
            content["annotations"].append({"id": len(content["annotations"]) + 1, **annotation})
        drawn = _draw(pil_to_tensor(image), *detections, classes)
        with atomic_path(out / f"{number:04d}_{path.stem}.jpg") as temporary:
            to_pil_image(drawn).save(temporary, format="JPEG", quality=90)
        progress(number, len(images))
    write_json(out / "predictions.json", content)
    return content


def category_ids_described(info: DetectorInfo) -> str:
    """Say where the category ids of detections come from."""
    if info.category_ids:
        return "those of the training images' annotation file"
    return "counted from 1: the detector file is of a version that did not keep those of its data"


def _detect(
    runner: Runner, images: Iterator[Image], score_threshold: float
) -> Iterator[tuple[Tensor, list[float], list[int]]]:
    """Yield boxes ``Tensor[n, 4]`` in pixels of the image, scores and labels of every image."""
    while batch := list(islice(images, runner.batch)):
        for boxes, scores, labels in runner.detect(batch):
            kept = scores >= score_threshold
            yield torch.from_numpy(boxes[kept]), scores[kept].tolist(), labels[kept].tolist()


def _annotations(
    image_id: int, ids: Sequence[int | str], boxes: Tensor, scores: list[float], labels: list[int]
) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image_id,
            "category_id": ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores, labels, strict=True)
    ]


def _draw(
    pixels: Tensor,
    boxes: Tensor,
    scores: list[float],
    labels: list[int],
    classes: Sequence[str],
) -> Tensor:
    captions = [f"{classes[n]} {score:.2f}" for n, score in zip(labels, scores, strict=True)]
    return draw_boxes(pixels, boxes, labels, captions)
