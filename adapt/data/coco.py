"""Which images and boxes does a COCO-format data set hold?"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapt.data.annotated_image import CocoImage
from adapt.data.entries import (
    parse_annotation,
    parse_categories,
    parse_images,
    read_lists,
    root_category,
)
from adapt.data.layout import find_split
from adapt.data.repair import Repair
from adapt.errors import AdaptError


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The N annotated boxes of one image.

    Attributes:
        xyxy: ``float64[N, 4]``, corners in pixels of the image.
        labels: ``int64[N]``, 0 to K - 1 in ascending order of the category ids.
        crowd: ``bool[N]``, boxes around groups, which neither training nor evaluation counts.
        areas: ``float64[N]``, square pixels of the object: of its mask if the file says so, less
            than the box then.
    """

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split of a data set.

    Attributes:
        annotations: The JSON file.
        folder: The folder the file names are relative to.
        images: The images in the order of the file.
        boxes: Their boxes, in the same order.
        class_names: Names in label order.
        category_ids: The file's category id of every label.
        repairs: What loading did to boxes that cannot be used as they stand in the file.
        root_category: Name of the category that only stands above the others and is no class.
    """

    annotations: Path
    folder: Path
    images: tuple[CocoImage, ...]
    boxes: tuple[ImageBoxes, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    repairs: tuple[Repair, ...] = ()
    root_category: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Image ids in order."""
        return tuple(image.id for image in self.images)

    def subset(self, image_ids: Sequence[int]) -> "CocoSplit":
        """Return a split of these images only, in this order.

        Raises:
            AdaptError: If there are no ids, or one that the split does not hold.
        """
        positions = {image.id: position for position, image in enumerate(self.images)}
        unknown = [image_id for image_id in image_ids if image_id not in positions]
        if unknown or not image_ids:
            raise AdaptError(
                f"cannot take images {unknown} out of {self.annotations}; choose at least one of "
                f"its {len(self)} image ids"
            )
        chosen = [positions[image_id] for image_id in image_ids]
        kept = set(image_ids)
        return replace(
            self,
            images=tuple(self.images[position] for position in chosen),
            boxes=tuple(self.boxes[position] for position in chosen),
            repairs=tuple(repair for repair in self.repairs if repair.image_id in kept),
        )

    def repaired(self) -> str:
        """Return in one line how many boxes were cut or left out; empty if none."""
        counts = Counter(repair.kind for repair in self.repairs)
        if not counts:
            return ""
        return (
            f"of the boxes in {self.annotations}, {counts['clipped']} were cut at the border of "
            f"their image and {counts['dropped']} left out; `adapt data check` tells why"
        )

    def limit(self, max_images: int | None) -> "CocoSplit":
        """Return at most ``max_images`` images, evenly spaced; ``None`` keeps all."""
        if max_images is None or max_images >= len(self):
            return self
        # Evenly spaced, not the first: files are often sorted by class or by camera.
        positions = np.linspace(0, len(self) - 1, max_images).round().astype(int)
        return self.subset([self.images[position].id for position in positions])


def load_split(root: Path, split: str, *, strict: bool = False) -> CocoSplit:
    """Find and load a split of a data set.

    Three layouts are known: COCO's own (``annotations/instances_train2017.json`` and
    ``train2017/``), ``annotations/train.json`` with ``images/``, and Roboflow's COCO export
    (``train/_annotations.coco.json`` with the images beside it).

    Args:
        root: Folder of the data set.
        split: Name of the split; ``train`` also finds ``train2017``, ``val`` also ``valid``.
        strict: Refuse boxes that loading would otherwise clip or drop.

    Raises:
        AdaptError: If no or more than one split fits, or its file is not sound.
    """
    return load_annotations(*find_split(root, split), strict=strict)


def load_annotations(annotations: Path, images: Path, *, strict: bool = False) -> CocoSplit:
    """Load a COCO JSON file; images are not opened (:func:`check_split` does).

    Boxes of no size or outside of their image are dropped, boxes that stick out of it by more than
    a pixel are clipped; ``repairs`` lists both.

    Args:
        annotations: The JSON file.
        images: Folder its file names are relative to.
        strict: Refuse such boxes instead.

    Raises:
        AdaptError: If the file or the folder is missing, or an entry is not sound.
    """
    content = read_lists(annotations)
    if not images.is_dir():
        raise AdaptError(f"image folder {images} of {annotations} does not exist; check the path")
    records = parse_images(content["images"], annotations, images)
    root = root_category(content)
    categories = parse_categories(
        [entry for entry in content["categories"] if entry is not root], annotations
    )
    labels = {category: label for label, category in enumerate(categories)}
    rows: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    repairs = []
    for entry in content["annotations"]:
        image, row, repair = parse_annotation(entry, records, labels, annotations)
        if repair is not None:
            repairs.append(repair)
        if repair is None or repair.kind == "clipped":
            rows[image].append(row)
    if strict and repairs:
        raise AdaptError(
            f"{repairs[0].reason}; correct it, or set data.repair = true in the recipe to leave "
            "such boxes out"
        )
    return CocoSplit(
        annotations=annotations,
        folder=images,
        images=tuple(records.values()),
        boxes=tuple(_to_boxes(rows[image]) for image in records),
        class_names=tuple(categories.values()),
        category_ids=tuple(categories),
        repairs=tuple(repairs),
        root_category=str(root["name"]) if root else "",
    )


def _to_boxes(rows: list[tuple[float, ...]]) -> ImageBoxes:
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return ImageBoxes(
        xyxy=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5].astype(np.bool_),
        areas=table[:, 6],
    )
