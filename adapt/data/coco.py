"""Which images and boxes does a COCO-format data set hold?"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unicodedata import normalize
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapt.artifacts import read_json
from adapt.data.images import decode, upright
from adapt.errors import AdaptError

TOLERANCE = 1.0  # pixels a box may stick out of its image: annotation tools round
SEE_CHECK = "(`adapt data check` lists all such images)"  # in errors about one image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CocoImage:
    """One image of a split; ``width`` and ``height`` are pixels as the annotations count them."""

    id: int
    path: Path
    width: int
    height: int


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


@dataclass(frozen=True)
class Repair:
    """What loading did to a box that cannot be used as it is: clipped or dropped it."""

    image_id: int
    kind: Literal["clipped", "dropped"]
    reason: str
    corners: Box  # (x1, y1, x2, y2) as annotated


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
    if not root.is_dir():
        raise AdaptError(f"data set {root} is not a folder; pass the one that holds annotations")
    splits = _find_splits(root)
    accepted = (split, "valid") if split == "val" else (split,)
    matches = [name for name in splits if name in accepted]
    matches = matches or [name for name in splits if _without_year(name) in accepted]
    if len(matches) != 1:
        problem = f"{len(matches)} splits named {split!r}" if matches else f"no split {split!r}"
        raise AdaptError(
            f"{root} has {problem}: looked for annotations/instances_{split}*.json, "
            f"annotations/{split}.json and {split}/_annotations.coco.json; choose one of "
            f"the splits it has ({', '.join(splits) or 'none'})"
        )
    return load_annotations(*splits[matches[0]], strict=strict)


def has_split(root: Path, split: str) -> bool:
    """Return whether a folder is a data set with this split."""
    return root.is_dir() and split in map(_without_year, _find_splits(root))


def _without_year(name: str) -> str:
    return re.sub(r"\d{4}$", "", name)  # of train2017


def _find_splits(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return (annotation file, image folder) of every split by its name."""
    splits = {}
    folder = root / "annotations"
    # COCO's folder also holds captions and key points: every file counts only where none is named
    # instances_*.
    for file in sorted(folder.glob("instances_*.json")) or sorted(folder.glob("*.json")):
        name = file.stem.removeprefix("instances_")
        places = (root / name, root / "images" / name, root / "images")
        splits[name] = file, next((place for place in places if place.is_dir()), places[0])
    for file in sorted(root.glob("*/_annotations.coco.json")):
        splits[file.parent.name] = file, file.parent
    return splits


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
    content = _read_lists(annotations)
    if not images.is_dir():
        raise AdaptError(f"image folder {images} of {annotations} does not exist; check the path")
    records = _parse_images(content["images"], annotations, images)
    root = _root_category(content)
    categories = _parse_categories(
        [entry for entry in content["categories"] if entry is not root], annotations
    )
    labels = {category: label for label, category in enumerate(categories)}
    rows: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    repairs = []
    for entry in content["annotations"]:
        image, row, repair = _parse_annotation(entry, records, labels, annotations)
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


def _read_lists(file: Path) -> dict[str, list[Any]]:
    content = read_json(file, "annotation file")
    needed = ("images", "annotations", "categories")
    entries = content if isinstance(content, dict) else {}
    missing = [name for name in needed if not isinstance(entries.get(name), list)]
    if missing:
        raise AdaptError(
            f"{file} has no list of {' or '.join(missing)}; export the data set in COCO format"
        )
    for name in ("images", "categories"):
        if not entries[name]:
            raise AdaptError(f"{file} holds no {name}; choose another split or export it again")
    return {name: entries[name] for name in needed}


def _parse_images(entries: list[Any], file: Path, folder: Path) -> dict[int, CocoImage]:
    images: dict[int, CocoImage] = {}
    for entry in entries:
        number = _integer(entry, "id", "an image", file)
        what = f"image {number}"
        name = entry.get("file_name")
        width, height = (_integer(entry, side, what, file) for side in ("width", "height"))
        if number in images:
            raise AdaptError(f"image id {number} occurs twice in {file}; make the ids unique")
        if not isinstance(name, str) or not name:
            raise AdaptError(f"{what} in {file} has file_name {name!r}; name its file")
        if width < 1 or height < 1:
            raise AdaptError(f"{what} in {file} is {width}x{height} pixels; correct its size")
        images[number] = CocoImage(number, _existing(folder, name), width, height)
    return images


def _existing(folder: Path, name: str) -> Path:
    """Return the path of an image by the name that the annotations give it.

    Tools write names that are not those on the disk: with backslashes, with the image folder in
    front, with %20 for a space, with a composed letter where the disk has two signs.
    """
    path = folder / name
    # Usual names are not looked up: a hundred thousand of them take minutes on a network drive.
    odd = name.startswith(f"{folder.name}/") or re.search(r"[\\%]|[^ -~]", name)
    if not odd or path.exists():
        return path
    slashes = name.replace("\\", "/")
    names = [slashes, unquote(slashes)]
    names += [variant.removeprefix(f"{folder.name}/") for variant in names]
    names += [normalize(form, variant) for variant in names for form in ("NFC", "NFD")]
    return next((folder / variant for variant in names if (folder / variant).exists()), path)


def _root_category(content: dict[str, list[Any]]) -> Any:
    """Return the entry that only stands above all other categories, as Roboflow writes one.

    It is no class: no box is of it, and all others name it as their supercategory.
    """
    entries = [entry for entry in content["categories"] if isinstance(entry, dict)]
    boxes = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    for root in entries:
        others = [entry for entry in entries if entry is not root]
        above = bool(others) and all(e.get("supercategory") == root.get("name") for e in others)
        if above and all(box.get("category_id") != root.get("id") for box in boxes):
            return root
    return None


def _parse_categories(entries: list[Any], file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for entry in entries:
        number = _integer(entry, "id", "a category", file)
        name = entry.get("name")
        if isinstance(name, int | float) and not isinstance(name, bool):
            name = str(name)  # digits, or sizes: classes are named, not counted
        if number in names:
            raise AdaptError(f"category id {number} occurs twice in {file}; make the ids unique")
        if not isinstance(name, str) or name in names.values():
            raise AdaptError(
                f"category {number} in {file} has the name {name!r}; give it a name of its own"
            )
        names[number] = name
    return dict(sorted(names.items()))


def _parse_annotation(
    entry: Any, images: dict[int, CocoImage], labels: dict[int, int], file: Path
) -> tuple[int, tuple[float, ...], Repair | None]:
    """Return the image id, the row (x1, y1, x2, y2, label, crowd, area) and the repair."""
    # Ids of annotations only name them in errors: tools write numbers, UUIDs, or none.
    number = entry.get("id") if isinstance(entry, dict) else None
    what = f"annotation {number}" if number is not None else "an annotation without id"
    for name, known in (("image_id", images), ("category_id", labels)):
        if _integer(entry, name, what, file) not in known:
            raise AdaptError(
                f"{what} in {file} has the unknown {name} {entry[name]}; remove it or list its "
                f"{name.removesuffix('_id')}"
            )
    image = images[int(entry["image_id"])]
    box = _parse_box(entry.get("bbox"), what, file)
    corners, repair = _repair_box(box, image, f"{what} in {file} has the box {entry['bbox']}")
    label, crowd = labels[int(entry["category_id"])], _is_crowd(entry.get("iscrowd"))
    area = entry.get("area")
    if not isinstance(area, int | float) or not area > 0:
        area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    return image.id, (*corners, label, crowd, area), repair


def _is_crowd(value: Any) -> bool:
    """Return whether ``iscrowd`` says so, as a number, a truth value or a word."""
    return value.strip().lower() in ("1", "true", "yes") if isinstance(value, str) else bool(value)


def _parse_box(box: Any, what: str, file: Path) -> Box:
    """Return (x, y, width, height), whether or not that is a usable box."""
    sound = isinstance(box, list) and len(box) == 4
    if not sound or not all(isinstance(v, int | float) for v in box):
        raise AdaptError(
            f"{what} in {file} has the bbox {box!r}; give four finite numbers: x, y, width, height"
        )
    x, y, width, height = map(float, box)
    return x, y, width, height


def _repair_box(box: Box, image: CocoImage, what: str) -> tuple[Box, Repair | None]:
    """Return a box's corners, clipped to the image if they stick out more than the tolerance."""
    x, y, width, height = box
    corners = x, y, x + width, y + height
    inside = max(x, 0.0), max(y, 0.0), min(x + width, image.width), min(y + height, image.height)
    if not all(map(math.isfinite, box)):
        reason = f"{what} of numbers that are not finite"
        return corners, Repair(image.id, "dropped", reason, corners)
    if width < 0 or height < 0:
        return corners, Repair(image.id, "dropped", f"{what} of negative size", corners)
    if width == 0 or height == 0:
        return corners, Repair(image.id, "dropped", f"{what} of no size", corners)
    where = f"its image {image.path.name} of {image.width}x{image.height} pixels"
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return corners, Repair(image.id, "dropped", f"{what} outside of {where}", corners)
    if max(abs(a - b) for a, b in zip(corners, inside, strict=True)) > TOLERANCE:
        return inside, Repair(image.id, "clipped", f"{what} that sticks out of {where}", corners)
    return corners, None


def _to_boxes(rows: list[tuple[float, ...]]) -> ImageBoxes:
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return ImageBoxes(
        xyxy=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5].astype(np.bool_),
        areas=table[:, 6],
    )


def _integer(entry: Any, name: str, what: str, file: Path) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)  # some exporters write 640.0
    if isinstance(value, bool) or not isinstance(value, int):
        raise AdaptError(f"{what} in {file} has {name} {value!r}; it must be an integer")
    if abs(value) >= 2**63:
        raise AdaptError(f"{what} in {file} has {name} {value}; it must be below 2^63")
    return value


def read_image(image: CocoImage) -> Image.Image:
    """Decode an image as RGB, in the orientation that its annotations refer to.

    Raises:
        AdaptError: If the file is missing, corrupt, of more than 8 bits, or of another size.
    """
    return as_annotated(stored_image(image), image).convert("RGB")


def stored_image(image: CocoImage) -> Image.Image:
    """Return an annotated image as it is stored.

    Raises:
        AdaptError: If it cannot be read; with the command that finds all such images.
    """
    if not image.path.exists():
        raise AdaptError(
            f"image {image.path} does not exist; add it or remove its annotations {SEE_CHECK}"
        )
    try:
        return decode(image.path)
    except AdaptError as error:
        raise AdaptError(f"{error} {SEE_CHECK}") from error


def as_annotated(stored: Image.Image, image: CocoImage) -> Image.Image:
    """Return an image in the orientation its annotations refer to.

    That is what viewers show (EXIF's orientation), unless only the stored image has the annotated
    width and height.

    Raises:
        AdaptError: If neither orientation has the annotated size.
    """
    # COCO does not say whether EXIF's rotation comes before annotating, and tools differ: the width
    # and height in the JSON file decide where they can. A half turn, a mirroring and squares have
    # the same size both ways; there, people have drawn boxes on what they saw.
    expected = image.width, image.height
    for turned in (upright(stored), stored):
        if turned.size == expected:
            return turned
    raise AdaptError(
        f"image {image.path} is {stored.width}x{stored.height} pixels, its annotations say "
        f"{image.width}x{image.height}; correct one of them {SEE_CHECK}"
    )
