"""Small data sets in COCO's format, sound or with something wrong in them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from adapt.data.check import DataReport
from adapt.data.coco import CocoSplit, read_split
from adapt.data.layout import find_split

IMAGE = {"id": 7, "file_name": "a.png", "width": 40, "height": 30}
CAT = {"id": 9, "name": "cat"}


def content(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30 pixels; the first has one box of each of two classes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [annotation(id=1, category_id=9), annotation(id=2, category_id=5)],
    } | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 10, 20]} | changes


def write_set(root: Path, **changes: Any) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30)).save(root / "images" / name)
    (root / "annotations" / "train.json").write_text(json.dumps(content(**changes)))
    return root


def with_boxes(root: Path, *boxes: list[float], **changes: Any) -> Path:
    entries = [annotation(id=k, bbox=box, **changes) for k, box in enumerate(boxes)]
    return write_set(root, annotations=entries)


def read(root: Path, split: str = "train") -> CocoSplit:
    """What can be used of a split, with its problems."""
    return read_split(find_split(root, split))


def told(report: DataReport) -> str:
    """All problems of a report as text."""
    return "\n".join(map(str, report.problems))
