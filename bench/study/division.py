"""How are the images of a data set divided anew for every seed?

The images of all its splits are pooled, shuffled and divided into parts of the same sizes, so that
no choice that was ever made on the published test images decides a study.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.artifacts import (
    atomic_folder,
    check_header,
    content_hash,
    file_hash,
    header,
    read_json,
    write_json,
)
from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.errors import AdaptError
from search.recipe.recipe import Recipe

PARTS = ("train", "val", "test")
MARKER = "division.json"


def divided_anew(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    """Write a COCO-format data set with the recipe's images divided anew; return its recipe.

    The images stay where they are; links lead to their folders.

    Args:
        recipe: The recipe; it needs a split of its own for each of train, val and test.
        folder: Folder of the new data set; one that is complete is used again.
        seed: Seed of the division.

    Raises:
        AdaptError: If two of the splits are the same, their images or classes do not fit, or the
            folder holds another division.
    """
    splits = _splits(recipe)
    sizes = [len(split) for split in splits]
    key = content_hash([seed, sizes, [file_hash(split.annotations) for split in splits]])
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            _write(splits, temporary, seed)
            content = header("division", key=key, seed=seed, images=sizes)
            write_json(temporary / MARKER, content)
    elif check_header(read_json(folder / MARKER, "division"), "division", folder)["key"] != key:
        raise AdaptError(
            f"{folder} holds the images of another data set; choose another folder with --out"
        )
    data = {"root": str(folder), **{name: name for name in PARTS}}
    return recipe.changed({"data": data}, "study")


def _splits(recipe: Recipe) -> list[CocoSplit]:
    names = [recipe.data.train, recipe.data.val, recipe.data.test]
    if "" in names or len(set(names)) < len(names):
        raise AdaptError(
            f"a study chooses on one split and reports another: recipe {recipe.name!r} needs "
            f"different data.train, data.val and data.test, got {names}"
        )
    train, *others = [recipe.split(name) for name in names]
    whose = str(train.annotations)
    splits = [train, *(split.matched(train.class_names, whose) for split in others)]
    paths = [image.path for split in splits for image in split.images]
    if len(set(paths)) < len(paths):
        raise AdaptError(
            f"{len(paths) - len(set(paths))} images of {recipe.data.root} are in two splits; "
            "`adapt data check` lists them"
        )
    return splits


def _write(splits: Sequence[CocoSplit], folder: Path, seed: int) -> None:
    folders = list(dict.fromkeys(split.folder for split in splits))
    pool = [
        (Path(str(folders.index(split.folder))) / image.path.relative_to(split.folder), image, of)
        for split in splits
        for image, of in zip(split.images, split.boxes, strict=True)
    ]
    pool.sort(key=lambda entry: str(entry[0]))  # the division must not depend on the splits
    order = np.random.default_rng(seed).permutation(len(pool))
    ends = np.cumsum([len(split) for split in splits])
    for name, places in zip(PARTS, np.split(order, ends[:-1]), strict=True):
        chosen = [(int(place) + 1, *pool[place]) for place in np.sort(places)]
        write_json(folder / "annotations" / f"{name}.json", _coco(chosen, splits[0].class_names))
    for number, linked in enumerate(folders):
        link = folder / "images" / str(number)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(linked.resolve(), target_is_directory=True)


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
