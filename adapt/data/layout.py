"""Where do the annotations and the images of a split lie?"""

import os
import re
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

from adapt.errors import AdaptError


def find_split(root: Path, split: str) -> tuple[Path, Path]:
    """Return annotation file and image folder of a split, as :func:`load_split` finds it.

    Raises:
        AdaptError: If no or more than one split fits.
    """
    check_folder(root)
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
    return splits[matches[0]]


def check_folder(root: Path) -> None:
    """Check that a data set is there.

    Raises:
        AdaptError: If not.
    """
    if not root.is_dir():
        raise AdaptError(f"data set {root} is not a folder; pass the one that holds annotations")


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


def exists(path: Path) -> bool:
    """Return whether there is a file of a name that annotations give; any text may be one."""
    try:
        return path.exists()
    except OSError:  # too long
        return False


def real_path(path: Path) -> str:
    """Return the file that links lead to; the path itself where the system knows no such name."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):  # of a link to itself, with a zero byte, of half a character
        return str(path)


def image_path(folder: Path, name: str) -> Path:
    """Return the path of an image by the name that the annotations give it.

    Tools write names that are not those on the disk: with backslashes, relative to a folder above,
    with %20 for a space, with a composed letter where the disk has two signs.
    """
    path = folder / name
    # Usual names are not looked up: a hundred thousand of them take minutes on a network drive.
    odd = name.partition("/")[0] in folder.parts[-2:] or re.search(r"^/|[\\%]|[^ -~]", name)
    if not odd or exists(path):
        return path
    # One that starts with a slash is below the folder, unless there is such a file elsewhere.
    slashes = name.replace("\\", "/").lstrip("/")
    names = [slashes, unquote(slashes)]
    names += [normalize(form, variant) for variant in names for form in ("NFC", "NFD")]
    above = folder, folder.parent, folder.parent.parent
    paths = [place / variant for place in above for variant in names]
    return next((variant for variant in paths if exists(variant)), folder / name.lstrip("/"))
