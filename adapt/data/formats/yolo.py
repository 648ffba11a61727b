"""What do the files of a data set in YOLO's format list?

A line of a label file is a class, and centre and size of a box as shares of the image, or a polygon
around the object, whose box is taken.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapt.artifacts import read_text
from adapt.data.formats.place import Entries, Lists, Place, Sources, listed_names, name_below
from adapt.data.formats.yolo_layout import class_names, label_paths, names_file
from adapt.data.images import find_images, upright_size
from adapt.data.inside import check_inside, check_link
from adapt.data.paths import is_file
from adapt.data.repair import Problem
from adapt.errors import AdaptError

EDGE = 1e-3  # share by which numbers may leave 0 to 1: tools round
Label = tuple[int, Sequence[float]]  # class; left, top, width and height as shares of the image


def sources(place: Place) -> Sources:
    """Return the files of labels and classes of a split, and the names of its images."""
    assert place.classes is not None
    images = _images(place)
    labels = [path for path in (_label_file(image, place) for image in images) if path]
    listed = [place.annotations] if place.annotations.is_file() else []
    described = dict.fromkeys([place.classes, names_file(place.classes)])
    return [*described, *listed, *labels], [str(name_below(place.images, path)) for path in images]


def read(place: Place) -> Lists:
    """Return what the files of a split say.

    Raises:
        AdaptError: If there are no labels, or the classes have no names.
    """
    assert place.classes is not None
    names, columns = class_names(place.classes)
    images, annotations, problems = Entries(), Entries(), list[Problem]()
    paths = _images(place)
    labels = {path: _label_file(path, place) for path in paths}
    if not any(labels.values()):
        raise AdaptError(
            f"none of the {len(paths)} images of {place.images} has a file of labels, such as "
            f"{label_paths(paths[0], place.root)[0]}; add them, or choose another split"
        )
    for key, path in enumerate(paths, start=1):
        try:
            check_link(path, place.folders)
            width, height = upright_size(path)
        except AdaptError as error:
            message, _, fix = str(error).rpartition("; ")
            problems.append(Problem("images that cannot be read", message, fix, "refused"))
            continue
        name = str(name_below(place.images, path))
        images.append({"id": key, "file_name": name, "width": width, "height": height})
        for where, found in _labels(labels[path], len(names), columns, place.classes):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            label, (x, y, w, h) = found
            box = [x * width, y * height, w * width, h * height]
            one = {"id": f"in {where}", "image_id": key, "category_id": label, "bbox": box}
            annotations.append(one)
    problems += _unused(place, {path for path in labels.values() if path})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return Lists(images, annotations, categories, tuple(problems))


def _images(place: Place) -> list[Path]:
    """Return the images of a split.

    Raises:
        AdaptError: If there is none, or one of the list does not exist or leads out of the folder.
    """
    if place.annotations.suffix != ".txt" or place.annotations.is_dir():
        return find_images([place.images])
    found = [_listed(place, line) for line in listed_names(place.annotations)]
    if not found:
        raise AdaptError(f"{place.annotations} lists no images; choose another split")
    return found


def _listed(place: Place, line: str) -> Path:
    # Darknet's lists name images from the folder that it runs in.
    folders = (place.annotations.parent, place.images, place.images.parent)
    slashes = line.replace("\\", "/")
    tried = [folder / name for name in (line, slashes) for folder in folders]
    tried += [place.annotations.parent / slashes.partition("/")[2]]
    found = next((path for path in tried if is_file(path)), None)
    if found is None:
        raise AdaptError(
            f"{place.annotations} lists {line}, which does not exist; write images as seen from "
            "the list's folder"
        )
    check_inside(found, place.folders, f"{place.annotations} lists {line}")
    return found


def _label_file(image: Path, place: Place) -> Path | None:
    """Return the labels of an image; None if it has none, and is one without objects."""
    paths = label_paths(image, place.root)
    return next((path for path in paths if path.is_file() and path != place.classes), None)


def _unused(place: Place, used: set[Path]) -> list[Problem]:
    """Return the label files of a folder that no image has."""
    if not place.annotations.is_dir():
        return []
    files = [path for path in place.annotations.rglob("*") if path.suffix.lower() == ".txt"]
    return [
        Problem("files of labels without an image", f"{path} has labels, and no image has its name")
        for path in sorted(files)
        if path not in used and path != place.classes and _is_of_labels(path)
    ]


def _is_of_labels(path: Path) -> bool:
    with path.open(errors="replace") as lines:
        return bool(re.match(r"\s*\d+(\s+[-+.\deE]+){4}", lines.readline()))


def _labels(
    file: Path | None, classes: int, columns: int, named: Path
) -> Iterator[tuple[str, Label | Problem]]:
    """Yield where each line is, and what it says; nothing of an image without labels."""
    if file is None:
        return
    for number, line in enumerate(read_text(file, "labels").splitlines(), start=1):
        if line.strip():
            where = f"line {number} of {file}"
            yield where, _read_line(line, where, classes, columns, named)


def _read_line(line: str, where: str, classes: int, columns: int, named: Path) -> Label | Problem:
    """Return class, and left, top, width and height as shares of the image."""
    try:
        label, *numbers = map(float, line.split())
    except ValueError:
        return Problem("lines that are no labels", f"{where} is {line.strip()[:60]!r}")
    if not label.is_integer() or not 0 <= label < classes:
        message = f"{where} has the class {label:g}, {named} names 0 to {classes - 1}"
        return Problem("labels of unknown classes", message)
    numbers = numbers[:columns] if columns else numbers
    polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
    if len(numbers) != 4 and not polygon:
        message = f"{where} has {len(numbers)} numbers after the class, a box has 4"
        return Problem("lines that are no labels", message)
    outside = [value for value in numbers if not -EDGE <= value <= 1 + EDGE]
    if outside:
        message = f"{where} has {outside[0]:g}, which is no share of the image's width or height"
        fix = "give centre and size from 0 to 1, or set data.repair = true to leave it out"
        return Problem("labels outside of 0 to 1", message, fix)
    if polygon:
        xs, ys = numbers[::2], numbers[1::2]
        return int(label), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    x, y, width, height = numbers
    return int(label), (x - width / 2, y - height / 2, width, height)
