"""Where do the splits of a data set in YOLO's format lie, and which classes does it have?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adapt.artifacts import read_text
from adapt.data.formats.place import Place
from adapt.data.images import SUFFIXES
from adapt.data.inside import check_inside
from adapt.data.paths import exists, is_dir, is_file
from adapt.errors import AdaptError

SPLITS = ("train", "val", "valid", "test")
YAML = (".yaml", ".yml")
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
    content = described(file)
    base = _base(file, content) if content.get("path") else file.parent
    places = {name: _place(file, content[name], name, base) for name in SPLITS if content.get(name)}
    # An entry `val` is often written for a split that was not exported.
    splits = {name: place for name, place in places.items() if place is not None}
    if not splits:
        raise AdaptError(
            f"{file} names no folder of images that exists here; set its train and val to folders "
            f"below {base}"
        )
    return splits


def dead_entry(root: Path, names: Sequence[str]) -> str:
    """Say which entry of a folder's description names images that do not exist; empty if none.

    Args:
        root: The folder, or the YAML file.
        names: The entries to look at, such as ``val`` and ``valid``.

    Raises:
        AdaptError: If the description is damaged.
    """
    file = root if root.is_file() else _description(root)
    content = described(file) if file else {}
    named = [f"{file} says {name}: {content[name]}" for name in names if content.get(name)]
    return f"{named[0]}, which does not exist" if named else ""


def looks_undescribed(root: Path) -> bool:
    """Return whether a folder holds images and labels, and nothing that names the classes."""
    return (root / "images").is_dir() and (root / "labels").is_dir()


def find_undescribed(root: Path) -> dict[str, Place]:
    """Return the splits of images with label files and a list of classes, by name.

    Labelling tools write so: ``images/`` and ``labels/``, or all in one folder. Images in no folder
    of their own are ``train``.
    """
    classes = next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)
    if classes is None:
        return {}
    images = root / "images"
    if not images.is_dir():
        beside = any(path.suffix.lower() in SUFFIXES for path in root.iterdir())
        return {"train": Place(root, root, "YOLO", classes, root)} if beside else {}
    below = [images / name for name in SPLITS if (images / name).is_dir()]
    return {
        (folder.name if folder != images else "train"): Place(
            label_paths(folder, root)[0], folder, "YOLO", classes, root
        )
        for folder in below or [images]
    }


def _description(root: Path) -> Path | None:
    files = sorted(path for path in root.glob("*") if path.suffix in YAML and path.is_file())
    files = [path for path in files if _has(path, "names:", "train:")] or [
        path for path in sorted(root.glob("*.data")) if _has(path, "names=", "train=")
    ]
    if len(files) > 1:
        raise AdaptError(
            f"{root} has {' and '.join(path.name for path in files[:3])}, each of which describes "
            f"a data set; pass one, such as {files[0]}"
        )
    return files[0] if files else None


def _has(file: Path, *keys: str) -> bool:
    """Return whether lines of a file begin with all keys; one that is damaged otherwise may."""
    lines = [re.sub(r"\s", "", line) for line in file.read_text(errors="replace").splitlines()]
    return all(any(line.startswith(key) for line in lines) for key in keys)


def described(file: Path) -> Mapping[str, Any]:
    """Return the entries of a file that describes a data set; numbers and truth values as text.

    Raises:
        AdaptError: If it cannot be read, or names no classes.
    """
    text = read_text(file, "data set")
    if file.suffix not in YAML:
        pairs = [line.partition("=") for line in text.splitlines()]
        return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    try:
        # Text alone: classes may be called yes, no or 1e3.
        content = yaml.load(text, yaml.BaseLoader)
        # A few lines of them can stand for more text than there is memory.
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = " ".join(str(error).split())
        raise AdaptError(f"{file} is not YAML: {where}; export it again") from error
    if aliases:
        raise AdaptError(f"{file} has YAML aliases (*); write out what they stand for")
    if not isinstance(content, dict) or "names" not in content:
        raise AdaptError(f"{file} has no `names`; list the classes there, in the order of labels")
    return content


def _base(file: Path, content: Mapping[str, Any]) -> Path:
    """Return the folder that the others are seen from.

    Raises:
        AdaptError: If it does not exist, as after a move to another machine, or leads out of the
            file's folder.
    """
    base = _existing_base(file, content)
    check_inside(base, (file.parent,), f"{file} says path: {content['path']}")
    return base


def _existing_base(file: Path, content: Mapping[str, Any]) -> Path:
    path = Path(str(content["path"])).expanduser()
    entries = [content[name] for name in SPLITS if isinstance(content.get(name), str)]
    for base in (file.parent / path, file.parent):
        if is_dir(base) and any(exists(base / entry) for entry in entries):
            return base
    if is_dir(file.parent / path):
        return file.parent / path
    raise AdaptError(
        f"{file} says path: {content['path']}, which does not exist here; set it to the folder "
        "above the images, seen from this file, such as `path: .`"
    )


def _place(file: Path, entry: object, name: str, base: Path) -> Place | None:
    """Return where a split lies that a description names; None if it does not exist.

    Raises:
        AdaptError: If two folders may be meant, or it is named by an absolute path that does not
            exist, which may be one of another machine, or leads out of the data set's folder.
    """
    if not isinstance(entry, str):
        raise AdaptError(
            f"{file} gives {entry!r} as {name}; give one folder or one list of images (.txt)"
        )
    found = _existing(file, entry, name, base)
    if found is None:
        if Path(entry).is_absolute() or re.match(r"[A-Za-z]:[\\/]", entry):
            raise AdaptError(
                f"{file} says {name}: {entry}, which does not exist here; write the folder as seen "
                "from this file"
            )
        return None
    check_inside(found, (base,), f"{file} says {name}: {entry}")
    if found.is_file():
        return Place(found, base, "YOLO", file, base)
    below = found / "images"
    images = below if below.is_dir() else found
    return Place(label_paths(images, base)[0], images, "YOLO", file, base)


def _existing(file: Path, entry: str, name: str, base: Path) -> Path | None:
    slashes = entry.replace("\\", "/")
    # Roboflow writes ../train/images for what lies beside the file.
    beside = base / slashes.removeprefix("../")
    tried = [base / entry, base / slashes, beside]
    if slashes.endswith(".txt"):  # as seen from where Darknet runs
        tried.append(base / Path(slashes).name)
    found = [path for path in tried if exists(path)]
    if len({path.resolve() for path in found}) > 1:
        raise AdaptError(
            f"{file} says {name}: {entry}, and both {found[0]} and {found[-1]} exist; write the "
            "one that is meant as seen from this file, without ../"
        )
    return found[0] if found else None


def label_paths(image: Path, root: Path | None) -> list[Path]:
    """Return where the labels of an image, or of a folder of images, may be, the usual first.

    ``images`` is ``labels`` in its path below the data set's folder, or they lie beside it.

    Args:
        image: A file or a folder.
        root: The data set's folder.
    """
    above = len(root.parts) if root and image.is_relative_to(root) else 0
    parts = list(image.parts)
    places = [n for n in range(above, len(parts)) if parts[n] == "images"]
    if places:
        parts[places[-1]] = "labels"
    found = [Path(*parts), image]
    if image.suffix.lower() in SUFFIXES:
        found = [path.with_suffix(".txt") for path in found]
    return list(dict.fromkeys(found))


def names_file(file: Path) -> Path:
    """Return the file that lists the classes of a description, which may be the same.

    Raises:
        AdaptError: If it leads out of the description's folder.
    """
    if file.suffix != ".data":
        return file
    named = Path(str(described(file).get("names", "obj.names")))
    places = (file.parent / named, file.parent / named.name)
    found = next((place for place in places if is_file(place)), places[-1])
    check_inside(found, (file.parent,), f"{file} says names = {named}")
    return found


def class_names(file: Path) -> tuple[list[str], int]:
    """Return the names of the classes, and how many numbers of a line are a box; 0 for all.

    Args:
        file: As of :attr:`Place.classes`.

    Raises:
        AdaptError: If they are missing, or there are more or fewer than the file says.
    """
    listed = names_file(file)
    if listed.suffix not in YAML:
        return _lines(listed), 0
    content = described(listed)
    names = content["names"]
    if isinstance(names, dict):
        numbers = sorted(int(key) if key.isdecimal() else -1 for key in names)
        if numbers != list(range(len(names))):
            raise AdaptError(
                f"{listed} numbers its classes {', '.join(names)}; number them from 0, without gaps"
            )
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names or not all(isinstance(one, str) for one in names):
        raise AdaptError(f"{listed} names no classes; list them in the order of the labels, from 0")
    if str(content.get("nc", len(names))) != str(len(names)):
        raise AdaptError(
            f"{listed} says nc: {content['nc']} and names {len(names)} classes; correct one of them"
        )
    return names, 4 if "kpt_shape" in content else 0


def _lines(file: Path) -> list[str]:
    names = [line.strip() for line in read_text(file, "classes").rstrip().splitlines()]
    if not names:
        raise AdaptError(f"{file} names no classes; list them in the order of the labels, from 0")
    if "" in names:
        number = names.index("") + 1
        raise AdaptError(f"line {number} of {file} is empty; name class {number - 1} there")
    return names
