"""What does a detector find in my images?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from adapt.artifacts import atomic_path, make_folder, write_json
from adapt.data.evaluate import detections_to_original
from adapt.data.images import fit, open_image
from adapt.progress import Progress, silent
from export.run.runner import Runner, batch_of_one

COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "orange", "white")


def predict(
    runner: Runner,
    images: Sequence[Path],
    out: Path,
    *,
    score_threshold: float = 0.3,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draw what a detector finds in images, and write it as JSON in COCO's layout.

    ``predictions.json`` has ``images`` (id, file name, size), ``categories`` and ``annotations``
    with ``bbox`` [x, y, width, height] in pixels of the image and ``score``; its ``annotations``
    are a COCO results list.

    Args:
        runner: An open runner of batch 1.
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
    classes = runner.info.classes
    content: dict[str, Any] = {
        "images": [],
        "categories": [{"id": n, "name": name} for n, name in enumerate(classes, start=1)],
        "annotations": [],
    }
    for number, path in enumerate(images, start=1):
        image = open_image(path)
        boxes, scores, labels = _detect(runner, image, score_threshold)
        content["images"].append(
            {"id": number, "file_name": str(path), "width": image.width, "height": image.height}
        )
        content["annotations"] += _annotations(number, boxes, scores, labels)
        captions = [f"{classes[n]} {s:.2f}" for n, s in zip(labels, scores, strict=True)]
        drawn = _draw(pil_to_tensor(image), boxes, labels, captions)
        with atomic_path(out / f"{number:04d}_{path.stem}.jpg") as temporary:
            to_pil_image(drawn).save(temporary, format="JPEG", quality=90)
        progress(number, len(images))
    write_json(out / "predictions.json", content)
    return content


def _detect(
    runner: Runner, image: Any, score_threshold: float
) -> tuple[Tensor, list[float], list[int]]:
    """Return boxes ``Tensor[n, 4]`` in pixels of the image, scores and labels."""
    pixels, factors = fit(image, runner.size)
    ((boxes, scores, labels),) = runner.infer(batch_of_one(pixels))
    kept = scores >= score_threshold
    original = detections_to_original(
        torch.from_numpy(boxes[kept]), factors, image.width, image.height
    )
    return original, scores[kept].tolist(), labels[kept].tolist()


def _annotations(
    image: int, boxes: Tensor, scores: list[float], labels: list[int]
) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores, labels, strict=True)
    ]


def _draw(pixels: Tensor, boxes: Tensor, labels: list[int], captions: list[str]) -> Tensor:
    if not captions:
        return pixels
    width = max(1, round(min(pixels.shape[-2:]) / 200))
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    drawn: Tensor = draw_bounding_boxes(pixels, boxes, captions, colours, width=width)
    return drawn
