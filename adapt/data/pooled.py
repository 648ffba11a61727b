"""How are the images of splits divided into other splits, without copying one?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt.artifacts import write_json
from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes

Entry = tuple[Path, CocoImage, ImageBoxes]  # name below the folder of images, image, boxes


def pooled(splits: Sequence[CocoSplit]) -> list[Entry]:
    """Return all images of splits of the same classes, in an order that depends on names alone."""
    folders = _folders(splits)
    pool = [
        (_name(image.path, split.folder, folders), image, of)
        for split in splits
        for image, of in zip(split.images, split.boxes, strict=True)
    ]
    return sorted(pool, key=lambda entry: str(entry[0]))


def write_divided(
    splits: Sequence[CocoSplit], parts: Mapping[str, Sequence[int]], folder: Path
) -> None:
    """Write a COCO-format data set whose images are links to those of other splits.

    Args:
        splits: The splits, of the same classes.
        parts: Places in :func:`pooled` of the images of each new split, by its name.
        folder: The folder to write into.
    """
    pool = pooled(splits)
    for name, places in parts.items():
        chosen = [(place + 1, *pool[place]) for place in sorted(map(int, places))]
        write_json(folder / "annotations" / f"{name}.json", _coco(chosen, splits[0].class_names))
    for number, linked in enumerate(_folders(splits)):
        link = folder / "images" / str(number)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(linked.resolve(), target_is_directory=True)


def _name(path: Path, folder: Path, folders: Sequence[Path]) -> Path:
    """Return the name of an image below the links; one from elsewhere has its whole path."""
    if not path.is_relative_to(folder):
        return path.resolve()
    return Path(str(folders.index(folder))) / path.relative_to(folder)


def _folders(splits: Sequence[CocoSplit]) -> list[Path]:
    return list(dict.fromkeys(split.folder for split in splits))


def _coco(
    entries: Sequence[tuple[int, Path, CocoImage, ImageBoxes]], classes: Sequence[str]
) -> dict[str, Any]:
    """Return the content of an annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name, image, boxes in entries:
        images.append(
            {
                "id": number,
                "file_name": name.as_posix(),
                "width": image.width,
                "height": image.height,
            }
        )
        for (x1, y1, x2, y2), label, crowd, area in zip(
            boxes.xyxy.tolist(), boxes.labels, boxes.crowd, boxes.areas, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}
