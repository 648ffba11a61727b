"""Where do the annotations and the images of a split lie?"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from adapt.artifacts import file_hash
from adapt.data.formats import coco, voc, yolo, yolo_layout
from adapt.data.formats.place import Format, Lists, Place, Sources
from adapt.errors import AdaptError

Finders = Mapping[Format, Callable[[Path], dict[str, Place]]]
FIND: Finders = {
    "COCO": coco.find,
    "Pascal VOC": voc.find,
    "YOLO": yolo_layout.find,
}
FIND_LOOSE: Finders = {
    "Pascal VOC": voc.find_unlisted,
    "YOLO": yolo_layout.find_undescribed,
}
SOURCES: dict[Format, Callable[[Place], Sources]] = {
    "COCO": coco.sources,
    "Pascal VOC": voc.sources,
    "YOLO": yolo.sources,
}
READ: dict[Format, Callable[[Place], Lists]] = {
    "COCO": coco.read,
    "Pascal VOC": voc.read,
    "YOLO": yolo.read,
}


def find_split(root: Path, split: str) -> Place:
    """Return where a split of a data set lies.

    Args:
        root: Folder of the data set, or the ``data.yaml`` of one in YOLO's format.
        split: Name of the split; ``train`` also finds ``train2017``, ``val`` also ``valid``.

    Raises:
        AdaptError: If no or more than one split fits.
    """
    check_folder(root)
    splits = _find_splits(root)
    accepted = _names_of(split)
    matches = [name for name in splits if name in accepted]
    matches = matches or [name for name in splits if _without_year(name) in accepted]
    if len(matches) != 1:
        problem = f"{len(matches)} splits named {split!r}" if matches else f"no split {split!r}"
        looked = (
            f"looked for annotations/instances_{split}*.json, annotations/{split}.json and "
            f"{split}/_annotations.coco.json, for Pascal VOC's ImageSets/Main/{split}.txt and "
            f"{split}/*.xml, and for YOLO's data.yaml"
        )
        fix = f"choose one of the splits it has ({', '.join(splits)})"
        if not splits:
            unnamed = yolo_layout.looks_undescribed(root)
            fix = "add a data.yaml that names the classes" if unnamed else "pass another folder"
        dead = "" if matches else dead_entry(root, split)
        raise AdaptError(f"{root} has {problem}: {dead or looked}; {fix}")
    return splits[matches[0]]


def dead_entry(root: Path, split: str) -> str:
    """Say which entry of a data.yaml names images of a split that do not exist; empty if none.

    Args:
        root: As of :func:`find_split`.
        split: Name of the split.
    """
    described = any(place.format == "YOLO" for place in _find_splits(root).values())
    return yolo_layout.dead_entry(root, _names_of(split)) if described else ""


def _names_of(split: str) -> tuple[str, ...]:
    return (split, "valid") if split == "val" else (split,)


def read_place(place: Place) -> Lists:
    """Return what the annotations of a split say, as COCO lists it.

    Raises:
        AdaptError: If they are missing or damaged.
    """
    return READ[place.format](place)


def annotation_hash(place: Place) -> str:
    """Return the SHA-256 of a split's annotations; they are read again only if they have changed.

    Raises:
        AdaptError: If they are missing.
    """
    files, names = SOURCES[place.format](place)
    hashes = [_hash_once(file) for file in files]
    if len(files) == 1:
        return hashes[0]
    paths = [os.path.relpath(file, place.images) for file in files]
    return hashlib.sha256(json.dumps([paths, hashes, names]).encode()).hexdigest()


def _hash_once(file: Path) -> str:
    status = file.stat()
    return _hash_of(file, status.st_mtime_ns, status.st_size)


@cache
def _hash_of(file: Path, changed: int, size: int) -> str:
    return file_hash(file)


def check_folder(root: Path) -> None:
    """Check that a data set is there.

    Raises:
        AdaptError: If not.
    """
    if not root.is_dir() and not (root.is_file() and root.suffix in yolo_layout.YAML):
        problem = "is not a folder" if root.exists() else "does not exist"
        raise AdaptError(
            f"data set {root} {problem}; pass the folder that holds annotations, or a data.yaml"
        )


def split_names(root: Path) -> list[str]:
    """Return the names of all splits of a folder."""
    return list(_find_splits(root))


def usual_split(root: Path) -> str:
    """Return the split to report AP of: ``test`` where there is one, or ``val``.

    Networks are chosen on ``val`` (``adapt derive --refine``), so that AP on it flatters them.
    """
    return "test" if has_split(root, "test") else "val"


def has_split(root: Path, split: str) -> bool:
    """Return whether a folder is a data set with this split."""
    known = root.is_dir() or root.suffix in yolo_layout.YAML
    return known and split in map(_without_year, _find_splits(root))


def _without_year(name: str) -> str:
    return re.sub(r"\d{4}$", "", name)  # of train2017


def _find_splits(root: Path) -> dict[str, Place]:
    """Return all splits by name.

    Raises:
        AdaptError: If there are some of two formats.
    """
    if root.is_file():
        return yolo_layout.find(root)
    if not root.is_dir():
        return {}
    # Only where no file lists splits: folders of a hundred thousand images are searched then.
    found = _found(root, FIND) or _found(root, FIND_LOOSE)
    if len(found) > 1:
        places = (f"{next(iter(of.values())).annotations} ({name})" for name, of in found.items())
        raise AdaptError(
            f"{root} holds annotations of two formats, {' and '.join(places)}; move those that are "
            "not meant out of it"
        )
    return next(iter(found.values()), {})


def _found(root: Path, finders: Finders) -> dict[Format, dict[str, Place]]:
    """Return the splits of every format that has some.

    Raises:
        AdaptError: If a file describes splits that are not there, and no other format has some.
    """
    found, errors = {}, list[AdaptError]()
    for name, find in finders.items():
        try:
            found[name] = find(root)
        except AdaptError as error:
            errors.append(error)
    splits = {name: of for name, of in found.items() if of}
    if errors and not splits:
        raise errors[0]
    return splits
