"""What does each entry of a COCO annotation file say?"""

from pathlib import Path
from typing import Any

from adapt.artifacts import read_json
from adapt.data.annotated_image import CocoImage
from adapt.data.layout import image_path
from adapt.data.repair import Box, Repair, repair_box
from adapt.errors import AdaptError


def read_lists(file: Path) -> dict[str, list[Any]]:
    """Return images, annotations and categories of a file as it has them."""
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


def parse_images(entries: list[Any], file: Path, folder: Path) -> dict[int, CocoImage]:
    """Return the images by their ids, in the order of the file."""
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
        images[number] = CocoImage(number, image_path(folder, name), width, height)
    return images


def root_category(content: dict[str, list[Any]]) -> Any:
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


def parse_categories(entries: list[Any], file: Path) -> dict[int, str]:
    """Return class names by category id, in ascending order of the ids."""
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


def parse_annotation(
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
    corners, repair = repair_box(box, image, f"{what} in {file} has the box {entry['bbox']}")
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


def _integer(entry: Any, name: str, what: str, file: Path) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, float) and value.is_integer():
        return int(value)  # some exporters write 640.0
    if isinstance(value, bool) or not isinstance(value, int):
        raise AdaptError(f"{what} in {file} has {name} {value!r}; it must be an integer")
    if abs(value) >= 2**63:
        raise AdaptError(f"{what} in {file} has {name} {value}; it must be below 2^63")
    return value
