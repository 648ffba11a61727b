"""Which splits does a folder hold in YOLO's format, and what do its files list?

A line of a label file is a class, and centre and size of a box as shares of the image, or a polygon
around the object, whose box is taken.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapt.artifacts import read_text
from adapt.data.formats.place import Entries, Lists, Place, Sources
from adapt.data.images import SUFFIXES, find_images, upright_size
from adapt.data.repair import Problem
from adapt.errors import AdaptError

SPLITS = ("train", "val", "valid", "test")
YAML = (".yaml", ".yml")
EDGE = 1e-3  # share by which numbers may leave 0 to 1: tools round
Label = tuple[int, Sequence[float]]  # class; left, top, width and height as shares of the image
CLASS_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")


def find(root: Path) -> dict[str, Place]:
    """Return the splits that a file of a folder describes, by name.

    Known are ``data.yaml``, which Ultralytics, Roboflow and CVAT write, and Darknet's ``obj.data``.

    Args:
        root: The folder, or the YAML file.

    Raises:
        AdaptError: If there are several such files, or one names folders that do not exist.
    """
    file = root if root.is_file() else _description(root)
    if file is None:
        return {}
    content, base = _described(file), file.parent
    if "path" in content:
        base = _base(file, content)
    splits = {}
    for name in SPLITS:
        if content.get(name):
            place = _place(file, content[name], name, base)
            # An entry `val` is often written for a split that was not exported.
            if place is not None:
                splits[name] = place
    if not splits:
        raise AdaptError(
            f"{file} names no folder of images that exists here; set its train and val to folders "
            f"below {base}"
        )
    return splits


def _description(root: Path) -> Path | None:
    files = sorted(path for path in root.glob("*") if path.suffix in YAML)
    files = [path for path in files if _names_splits(path)] or sorted(root.glob("*.data"))
    if len(files) > 1:
        raise AdaptError(
            f"{root} has {' and '.join(path.name for path in files[:3])}, each of which describes "
            f"a data set; pass one, such as {files[0]}"
        )
    return files[0] if files else None


def _names_splits(file: Path) -> bool:
    """Return whether a YAML file describes a data set; one that is damaged may."""
    text = read_text(file, "data set")
    return all(re.search(rf"^{key}\s*:", text, re.MULTILINE) for key in ("names", "train"))


def _described(file: Path) -> Mapping[str, Any]:
    text = read_text(file, "data set")
    if file.suffix not in YAML:
        pairs = [line.partition("=") for line in text.splitlines()]
        return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise AdaptError(f"{file} is not YAML: {where}; export it again") from error
    if not isinstance(content, dict) or "names" not in content:
        raise AdaptError(f"{file} has no `names`; list the classes there, in the order of labels")
    return content


def _base(file: Path, content: Mapping[str, Any]) -> Path:
    """Return the folder that the others are seen from.

    Raises:
        AdaptError: If it does not exist, as after a move to another machine.
    """
    path = Path(str(content["path"])).expanduser()
    entries = [content[name] for name in SPLITS if isinstance(content.get(name), str)]
    for base in (file.parent / path, file.parent):
        if base.is_dir() and any((base / entry).exists() for entry in entries):
            return base
    if (file.parent / path).is_dir():
        return file.parent / path
    raise AdaptError(
        f"{file} says path: {content['path']}, which does not exist here; set it to the folder "
        "above the images, seen from this file, such as `path: .`"
    )


def _place(file: Path, entry: object, name: str, base: Path) -> Place | None:
    """Return where a split lies that a description names; None if it does not exist.

    Raises:
        AdaptError: If it is named by an absolute path, which may be one of another machine.
    """
    if not isinstance(entry, str):
        raise AdaptError(
            f"{file} gives {entry!r} as {name}; give one folder or one list of images (.txt)"
        )
    # Roboflow writes ../train/images for what lies beside the file.
    tried = [base / entry, base / entry.removeprefix("../"), base / Path(entry).name]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        if Path(entry).is_absolute() or re.match(r"[A-Za-z]:[\\/]", entry):
            raise AdaptError(
                f"{file} says {name}: {entry}, which does not exist here; write the folder as seen "
                "from this file"
            )
        return None
    if found.is_file():
        return Place(found, base, "YOLO", file)
    below = found / "images"
    images = below if below.is_dir() else found
    return Place(_label_path(images), images, "YOLO", file)


def find_undescribed(root: Path) -> dict[str, Place]:
    """Return the splits of ``images/`` with ``labels/`` and a list of classes, by name.

    Labelling tools write so. Images in no folder of their own are ``train``.
    """
    classes = next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    images = root / "images"
    if classes is None or not images.is_dir():
        return {}
    below = [images / name for name in SPLITS if (images / name).is_dir()]
    return {
        (folder.name if folder != images else "train"): Place(
            _label_path(folder), folder, "YOLO", classes
        )
        for folder in below or [images]
    }


def _label_path(image: Path) -> Path:
    """Return where the labels of a folder or file of images are."""
    parts = list(image.parts)
    for place in range(len(parts) - 1, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    path = Path(*parts)
    return path.with_suffix(".txt") if image.suffix.lower() in SUFFIXES else path


def _images(place: Place) -> list[Path]:
    """Return the images of a split.

    Raises:
        AdaptError: If there is none, or one of the list does not exist.
    """
    if place.annotations.suffix != ".txt" or place.annotations.is_dir():
        return find_images([place.images])
    lines = [
        line.strip() for line in read_text(place.annotations, "list of images").split("\n") if line
    ]
    if not lines:
        raise AdaptError(f"{place.annotations} lists no images; choose another split")
    return [_listed(place, line) for line in lines]


def _listed(place: Place, line: str) -> Path:
    # Darknet's lists name images from the folder that it runs in.
    folders = (place.annotations.parent, place.images, place.images.parent)
    tried = [folder / line for folder in folders]
    tried += [place.annotations.parent / line.partition("/")[2]]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise AdaptError(
            f"{place.annotations} lists {line}, which does not exist; write images as seen from "
            "the list's folder"
        )
    return found


def sources(place: Place) -> Sources:
    """Return the files of labels and classes of a split, and the names of its images."""
    images = _images(place)
    labels = [path for path in map(_label_path, images) if path.is_file()]
    listed = [place.annotations] if place.annotations.is_file() else []
    names = [str(path.relative_to(place.images)) for path in images if _below(path, place)]
    return [*([place.classes] if place.classes else []), *listed, *labels], names


def _below(path: Path, place: Place) -> bool:
    return path.is_relative_to(place.images)


def read(place: Place) -> Lists:
    """Return what the files of a split say.

    Raises:
        AdaptError: If there are no labels, or the classes have no names.
    """
    assert place.classes is not None
    names, columns = _class_names(place.classes)
    images, annotations = Entries(), Entries()
    problems = list[Problem]()
    paths = _images(place)
    if not any(_label_path(path).is_file() for path in paths):
        raise AdaptError(
            f"none of the {len(paths)} images of {place.images} has a file of labels, such as "
            f"{_label_path(paths[0])}; add them, or choose another split"
        )
    for key, path in enumerate(paths, start=1):
        width, height = upright_size(path)
        name = path.relative_to(place.images) if _below(path, place) else path
        images.append({"id": key, "file_name": str(name), "width": width, "height": height})
        for where, found in _labels(_label_path(path), len(names), columns, place.classes):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            label, (x, y, w, h) = found
            box = [x * width, y * height, w * width, h * height]
            one = {"id": f"in {where}", "image_id": key, "category_id": label, "bbox": box}
            annotations.append(one)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return Lists(images, annotations, categories, tuple(problems))


def _labels(
    file: Path, classes: int, columns: int, named: Path
) -> Iterator[tuple[str, Label | Problem]]:
    """Yield where each line is, and what it says; nothing of an image without labels."""
    if not file.is_file():
        return
    for number, line in enumerate(read_text(file, "labels").splitlines(), start=1):
        if line.strip():
            where = f"line {number} of {file}"
            yield where, _read_line(line, where, classes, columns, named)


def _class_names(file: Path) -> tuple[list[str], int]:
    """Return the names of the classes, and how many numbers of a line are a box; 0 for all.

    Raises:
        AdaptError: If they are missing, or there are more or fewer than the file says.
    """
    content: Mapping[str, Any] = {}
    names: object = None
    if file.suffix in YAML:
        content = _described(file)
        names = content["names"]
    elif file.suffix == ".data":
        named = Path(str(_described(file).get("names", "obj.names")))
        places = (file.parent / named, file.parent / named.name)
        file = next((place for place in places if place.is_file()), places[0])
    if names is None:
        names = [line.strip() for line in read_text(file, "classes").splitlines() if line.strip()]
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise AdaptError(f"{file} names no classes; list them in the order of the labels, from 0")
    if content.get("nc", len(names)) != len(names):
        raise AdaptError(
            f"{file} says nc: {content['nc']} and names {len(names)} classes; correct one of them"
        )
    return [str(name) for name in names], 4 if "kpt_shape" in content else 0


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
