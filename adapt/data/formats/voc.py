"""Which splits does a folder hold in Pascal VOC's format, and what do its files list?

Boxes of VOC name their first and last pixel, counted from 1. Many tools count from 0 instead: where
a box of the split begins at 0, none is shifted.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from torchvision.datasets import VOCDetection

from adapt.artifacts import read_text
from adapt.data.formats.place import Entries, Lists, Place, Sources
from adapt.data.images import SUFFIXES, upright_size
from adapt.data.repair import Problem
from adapt.errors import AdaptError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(root: Path) -> dict[str, Place]:
    """Return the splits of a folder by name, as VOC's own layout lists them.

    It is ``ImageSets/Main/train.txt`` with ``Annotations/`` and ``JPEGImages/``, also below
    ``VOC2012/``, whose split is named ``train2012``.
    """
    splits = _listed(root)
    for below in sorted(root.glob("VOC*")):
        year = below.name[3:]
        splits |= {f"{name}{year}": place for name, place in _listed(below).items()}
    return splits


def find_unlisted(root: Path) -> dict[str, Place]:
    """Return the splits of a folder without lists, by name.

    They are folders with annotations beside the images, as Roboflow exports them. What lies in
    ``Annotations/`` or in the folder itself is ``train``.
    """
    splits = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.lower() != "annotations" and _first_xml(folder):
            splits[folder.name] = Place(folder, folder, "Pascal VOC")
    if splits:
        return splits
    for folder in (root / "Annotations", root / "annotations", root):
        if _first_xml(folder):
            return {"train": Place(folder, _image_folder(root), "Pascal VOC")}
    return {}


def _listed(root: Path) -> dict[str, Place]:
    return {
        path.stem: Place(path, _image_folder(root), "Pascal VOC")
        for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))
        if not _is_of_a_class(path)
    }


def _is_of_a_class(file: Path) -> bool:
    """Return whether a list has a second column, as ``cat_train.txt``: which images show one."""
    with file.open(errors="replace") as lines:
        return len(lines.readline().split()) > 1


def _image_folder(root: Path) -> Path:
    places = (root / "JPEGImages", root / "images", root)
    return next(place for place in places if place.is_dir())


def _first_xml(folder: Path) -> bool:
    """Return whether the first XML file of a folder annotates an image."""
    first = min(folder.glob("*.xml"), default=None) if folder.is_dir() else None
    return first is not None and "<annotation" in first.read_text(errors="replace")[:1000]


def sources(place: Place) -> Sources:
    """Return the annotation files of a split, and its list if there is one.

    Raises:
        AdaptError: If a file of the list is missing.
    """
    if place.annotations.is_dir():
        return sorted(place.annotations.rglob("*.xml")), []
    folder = place.annotations.parents[2] / "Annotations"
    names = read_text(place.annotations, "list of images").split()
    files = [folder / f"{name}.xml" for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise AdaptError(
            f"{missing[0]} does not exist, {place.annotations} lists its image (and "
            f"{len(missing) - 1} more); add it, or take the name out of the list"
        )
    if not files:
        raise AdaptError(f"{place.annotations} lists no images; choose another split")
    return [place.annotations, *files], []


def read(place: Place) -> Lists:
    """Return what the files of a split say.

    Raises:
        AdaptError: If a file is missing or not of this format.
    """
    files = [file for file in sources(place)[0] if file.suffix == ".xml"]
    contents = [_content(file) for file in files]
    found = [(file, _objects(content)) for file, content in zip(files, contents, strict=True)]
    named = sorted({str(one["name"]) for _, of in found for one in of if one.get("name")})
    categories = [{"id": number, "name": name} for number, name in enumerate(named, start=1)]
    numbers = {name: number for number, name in enumerate(named, start=1)}
    first = 0 if any(corner == 0 for _, of in found for corner in _firsts(of)) else 1
    known = {path.stem: path for path in _images(place.images)}
    images, annotations = Entries(), Entries()
    problems = list[Problem]()
    for key, (file, objects) in enumerate(found, start=1):
        content = contents[key - 1]
        path, problem = _image_of(file, content, place.images, known)
        problems += [problem] if problem else []
        width, height = _size(content, path)
        name = path.relative_to(place.images) if path.is_relative_to(place.images) else path
        images.append({"id": key, "file_name": str(name), "width": width, "height": height})
        for order, one in enumerate(objects, start=1):
            annotations.append(
                {
                    "id": f"{order} of {file.name}",
                    "image_id": key,
                    "category_id": numbers.get(str(one.get("name") or "")),
                    "bbox": _box(one, first),
                    # VOC does not count what is hard to see, neither found nor missed.
                    "iscrowd": str(one.get("difficult", 0)) == "1",
                }
            )
    return Lists(images, annotations, categories, tuple(problems))


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _content(file: Path) -> dict[str, Any]:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise AdaptError(f"{file} is not XML: {error}; export it again") from error
    if root.tag != "annotation":
        what = "CVAT's own format" if root.tag == "annotations" else f"a list of <{root.tag}>"
        raise AdaptError(
            f"{file} is {what}, no <annotation> of an image; export the data set as COCO, Pascal "
            "VOC or YOLO"
        )
    content = VOCDetection.parse_voc_xml(root).get("annotation")
    return content if isinstance(content, dict) else {}


def _objects(content: dict[str, Any]) -> list[dict[str, Any]]:
    objects = content.get("object") or []
    return [one if isinstance(one, dict) else {} for one in objects]


def _firsts(objects: list[dict[str, Any]]) -> Iterator[float | None]:
    """Yield where boxes begin."""
    for one in objects:
        corners = _corners(one)
        yield from corners[:2] if corners else ()


def _corners(one: dict[str, Any]) -> list[float] | None:
    box = one.get("bndbox")
    try:
        corners = [float(box[name]) for name in CORNERS] if isinstance(box, dict) else []
    except (KeyError, TypeError, ValueError):
        return None
    return corners if len(corners) == 4 and all(map(math.isfinite, corners)) else None


def _box(one: dict[str, Any], first: int) -> object:
    """Return (x, y, width, height) with edges from 0; what is no box as it was read."""
    corners = _corners(one)
    if corners is None:
        return str(one.get("bndbox"))
    x1, y1, x2, y2 = corners
    # The last pixel belongs to the box: its far edge is one further, from 0 the same number.
    return [x1 - first, y1 - first, x2 - x1 + first, y2 - y1 + first]


def _size(content: dict[str, Any], path: Path) -> tuple[object, object]:
    """Return width and height as the file says, or those of the image where it says nothing."""
    size = content.get("size")
    said = (size.get("width"), size.get("height")) if isinstance(size, dict) else (None, None)
    if all(str(side or "0").strip() not in ("0", "None") for side in said):
        return said
    return upright_size(path)


def _image_of(
    file: Path, content: dict[str, Any], folder: Path, known: dict[str, Path]
) -> tuple[Path, Problem | None]:
    """Return the image of an annotation file, and the problem if two may be meant."""
    written = str(content.get("filename") or "").replace("\\", "/").rpartition("/")[2]
    by_file = known.get(file.stem)
    by_name = known.get(Path(written).stem) or known.get(written)
    if by_file and by_name and by_file != by_name:
        message = f"{file} names the image {written}, and {by_file.name} has its name"
        fix = "correct <filename>, or rename the file"
        return by_file, Problem("files that name another image", message, fix, "refused")
    return by_file or by_name or folder / (written or f"{file.stem}.jpg"), None
