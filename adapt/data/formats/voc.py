"""Which splits does a folder hold in Pascal VOC's format, and what do its files list?

Boxes of VOC name their first and last pixel, counted from 1. Many tools count from 0 instead, or
give edges between pixels: where boxes of the data set begin before 1, or have fractions, none is
shifted.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from torchvision.datasets import VOCDetection

from adapt.artifacts import parsing, read_text
from adapt.data.formats.place import Entries, Lists, Place, Sources, listed_names, name_below
from adapt.data.images import find_images, upright_size
from adapt.data.inside import check_inside, check_link
from adapt.data.paths import is_file
from adapt.data.repair import Problem
from adapt.errors import AdaptError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
CORNER = re.compile(rb"<([xy]min)>\s*(-?[\d.]+)\s*<")
FRACTIONS = 0.1  # share of the corners; VOC itself has a few
ANNOTATIONS = ("Annotations", "annotations")
LABELS = "labelmap.txt"  # CVAT's list of classes, with their colours: name:colour:parts:actions
NO_CLASS = "background"  # that it begins with


def find(root: Path) -> dict[str, Place]:
    """Return the splits of a folder by name, as VOC's own layout lists them.

    It is ``ImageSets/Main/train.txt`` with ``Annotations/`` and ``JPEGImages/``, also below
    ``VOC2012/``, whose split is named ``train2012``.

    Raises:
        AdaptError: If there are lists, and all of them are of a class.
    """
    splits = _listed(root)
    for below in sorted(root.glob("VOC*")):
        year = below.name[3:]
        splits |= {f"{name}{year}": place for name, place in _listed(below).items()}
    return splits


def find_unlisted(root: Path) -> dict[str, Place]:
    """Return the splits of a folder without lists, by name.

    They are folders with annotations beside the images, as Roboflow exports them. Files in a folder
    without images, or in the folder itself, are ``train``.
    """
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and _first_xml(path)]
    splits = [path for path in folders if path.name not in ANNOTATIONS and _has_images(path)]
    if splits:
        return {path.name: Place(path, path, "Pascal VOC", root=root) for path in splits}
    alone = [*folders, *([root] if _first_xml(root) else [])]
    if not alone:
        return {}
    return {"train": Place(alone[0], _image_folder(root), "Pascal VOC", root=root)}


def _listed(root: Path) -> dict[str, Place]:
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    kept = [path for path in lists if not _is_of_a_class(path, root / "Annotations")]
    if lists and not kept:
        raise AdaptError(
            f"the lists of {lists[0].parent} are of single classes; write a list of images for "
            "each split, such as train.txt"
        )
    images = _image_folder(root)
    return {path.stem: Place(path, images, "Pascal VOC", root=root) for path in kept}


def _is_of_a_class(file: Path, annotations: Path) -> bool:
    """Return whether a list says which images show a class, as ``cat_train.txt``."""
    with file.open(errors="replace") as lines:
        first = lines.readline().strip()
    return bool(re.search(r"\s(-1|0|1)$", first)) and not (annotations / f"{first}.xml").is_file()


def _image_folder(root: Path) -> Path:
    places = (root / "JPEGImages", root / "images", root)
    return next(place for place in places if place.is_dir())


def _xml_files(folder: Path, pattern: str = "*.xml") -> Iterator[Path]:
    """Yield XML files; macOS writes companions, ``._a.xml``."""
    return (path for path in folder.glob(pattern) if not path.name.startswith("."))


def _first_xml(folder: Path) -> bool:
    """Return whether the first XML file of a folder annotates an image."""
    first = min(_xml_files(folder), default=None)
    return first is not None and "<annotation" in first.read_text(errors="replace")[:1000]


def _has_images(folder: Path) -> bool:
    try:
        return bool(find_images([folder]))
    except AdaptError:
        return False


def sources(place: Place) -> Sources:
    """Return the annotation files of a split, its list, and how its pixels are counted.

    Raises:
        AdaptError: If a file of the list is missing.
    """
    files, _ = _files(place)
    listed = [path for path in (place.annotations, _label_map(place)) if path.is_file()]
    return [*listed, *files], [f"pixels from {_first_pixel(place)}"]


def _files(place: Place) -> tuple[list[Path], Path]:
    """Return the annotation files of a split, and their folder."""
    if place.annotations.is_dir():
        return sorted(_xml_files(place.annotations, "**/*.xml")), place.annotations
    folder = place.annotations.parents[2] / "Annotations"
    lines = listed_names(place.annotations)
    files = [folder / f"{line}.xml" for line in lines]
    for line, file in zip(lines, files, strict=True):
        check_inside(file, place.folders, f"{place.annotations} lists {line!r}")
    missing = [file for file in files if not is_file(file)]
    if missing:
        raise AdaptError(
            f"{missing[0]} does not exist, {place.annotations} lists its image (and "
            f"{len(missing) - 1} more); add it, or take the name out of the list"
        )
    if not files:
        raise AdaptError(f"{place.annotations} lists no images; choose another split")
    return files, folder


def _first_pixel(place: Place) -> int:
    """Return whether pixels are counted from 0 or 1, in all splits of the data set."""
    assert place.root is not None
    files = list(_xml_files(place.root, "**/*.xml"))
    changed = max((file.stat().st_mtime_ns for file in files), default=0)
    return _counted_from(place.root, len(files), changed)


@cache
def _counted_from(root: Path, number: int, changed: int) -> int:
    """Look into all files; ``number`` and ``changed`` tell whether that was done before."""
    corners, fractions = 0, 0
    for file in _xml_files(root, "**/*.xml"):
        for _, digits in CORNER.findall(file.read_bytes()):
            value = float(digits) if digits.count(b".") < 2 else math.nan
            if value < 1:
                return 0
            corners += 1
            fractions += not value.is_integer()
    return 0 if fractions > FRACTIONS * corners else 1


def read(place: Place) -> Lists:
    """Return what the files of a split say.

    Raises:
        AdaptError: If a file is missing or not of this format.
    """
    files, folder = _files(place)
    contents = [_content(file) for file in files]
    objects = [_objects(content) for content in contents]
    used = sorted({str(one["name"]) for of in objects for one in of if one.get("name")})
    named = list(dict.fromkeys([*_listed_classes(_label_map(place)), *used]))
    categories = [{"id": number, "name": name} for number, name in enumerate(named, start=1)]
    numbers = {name: number for number, name in enumerate(named, start=1)}
    first, known = _first_pixel(place), _Images(place.images)
    images, annotations, problems = Entries(), Entries(), list[Problem]()
    for key, (file, content) in enumerate(zip(files, contents, strict=True), start=1):
        path, problem = known.of(file, name_below(folder, file), content)
        try:
            check_inside(path, place.folders, f"{file} names {content.get('filename')!r}")
            check_link(path, place.folders)
            width, height = _size(content, path)
        except AdaptError as error:
            message, _, fix = str(error).rpartition("; ")
            problem = problem or Problem("images that cannot be read", message, fix, "refused")
        if problem:
            problems.append(problem)
            continue
        name = str(name_below(place.images, path))
        images.append({"id": key, "file_name": name, "width": width, "height": height})
        for order, one in enumerate(objects[key - 1], start=1):
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


def _label_map(place: Place) -> Path:
    assert place.root is not None
    return place.root / LABELS


def _listed_classes(label_map: Path) -> list[str]:
    """Return the classes that an exporter lists, in its order; none without a list.

    Raises:
        AdaptError: If the list cannot be read.
    """
    if not label_map.is_file():
        return []
    lines = (line.strip() for line in read_text(label_map, "list of classes").splitlines())
    names = [line.partition(":")[0].strip() for line in lines if not line.startswith("#")]
    return [name for name in names if name and name != NO_CLASS]


def _content(file: Path) -> dict[str, Any]:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise AdaptError(f"{file} is not XML: {error}; export it again") from error
    if root.tag != "annotation":
        what = "CVAT's own format" if root.tag == "annotations" else f"a list of <{root.tag}>"
        raise AdaptError(
            f"{file} is {what}, no <annotation> of an image; export the data set as COCO, Pascal "
            "VOC or YOLO"
        )
    with parsing("annotation", file, "export it again"):
        content = VOCDetection.parse_voc_xml(root).get("annotation")
    return content if isinstance(content, dict) else {}


def _objects(content: dict[str, Any]) -> list[dict[str, Any]]:
    objects = content.get("object") or []
    return [one if isinstance(one, dict) else {} for one in objects]


def _box(one: dict[str, Any], first: int) -> object:
    """Return (x, y, width, height) with edges from 0; what is no box as it was read."""
    box = one.get("bndbox")
    try:
        corners = [float(box[name]) for name in CORNERS] if isinstance(box, dict) else []
    except (KeyError, TypeError, ValueError):
        corners = []
    if len(corners) != 4 or not all(map(math.isfinite, corners)):
        return str(box)
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


class _Images:
    """The images of a folder, by what annotation files may call them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_place = defaultdict[Path, list[Path]](list)  # below the folder, without ending
        self.by_stem = defaultdict[str, list[Path]](list)
        for path in find_images([folder]) if _has_images(folder) else []:
            self.by_place[path.relative_to(folder).with_suffix("")].append(path)
            self.by_stem[path.stem].append(path)

    def of(self, file: Path, place: Path, content: dict[str, Any]) -> tuple[Path, Problem | None]:
        """Return the image of an annotation file, and the problem if another one may be meant.

        Args:
            file: The annotation file.
            place: Its path below the folder of annotations, where images have the same.
            content: What it says.
        """
        written = str(content.get("filename") or "").replace("\\", "/")
        named = self.folder / written if written and is_file(self.folder / written) else None
        stems = [path.with_suffix("") for path in (place, Path(written)) if path.name]
        here = next((self.by_place[stem] for stem in stems if stem in self.by_place), [])
        here = here or self.by_stem.get(file.stem, []) or self.by_stem.get(Path(written).stem, [])
        if len(here) > 1:
            same = [path for path in here if path.suffix == Path(written).suffix]
            here = same if len(same) == 1 else here
        if len(here) > 1:
            listed = " and ".join(str(path) for path in here[:2])
            message = f"{file} may be of {listed}"
            fix = "give images names of their own, or write the name with its folder as <filename>"
            return here[0], Problem("files that fit several images", message, fix, "refused")
        if here and named and named != here[0]:
            message = f"{file} names the image {written}, and {here[0].name} has its name"
            fix = "correct <filename>, or rename the file"
            return here[0], Problem("files that name another image", message, fix, "refused")
        return (here or [named or self.folder / (written or f"{file.stem}.jpg")])[0], None
