"""How are the images of splits divided into other splits, without copying one?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt.artifacts import write_json
from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.inside import leads_out

Folders = tuple[Path, Path]  # of the images of a split, and of its data set
Entry = tuple[Path, CocoImage, ImageBoxes]  # name below the folder of images, image, boxes
ROOT = "-root"  # of the names of links to whole data sets


def pooled(splits: Sequence[CocoSplit]) -> list[Entry]:
    """Return all images of splits of the same classes, in an order that depends on names alone."""
    folders = _folders(splits)
    pool = [
        (_name(image.path, split, folders), image, of)
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
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (images, root) in enumerate(_folders(splits)):
        for name, linked in ((str(number), images), (f"{number}{ROOT}", root)):
            link = folder / "images" / name
            link.symlink_to(linked.resolve(), target_is_directory=True)


def _name(path: Path, split: CocoSplit, folders: Sequence[Folders]) -> Path:
    """Return the name of an image below the links; one from elsewhere has its whole path."""
    images, root = of_split = _folders_of(split)
    number = folders.index(of_split)
    if not path.is_relative_to(images):
        return path.resolve()
    if path.is_relative_to(root) and leads_out(path, [images]):  # into a store beside it
        return Path(f"{number}{ROOT}") / path.relative_to(root)
    return Path(str(number)) / path.relative_to(images)


def _folders(splits: Sequence[CocoSplit]) -> list[Folders]:
    return list(dict.fromkeys(map(_folders_of, splits)))


def _folders_of(split: CocoSplit) -> Folders:
    return split.folder, split.place.root or split.folder


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
