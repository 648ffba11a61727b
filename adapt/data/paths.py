"""Which file is meant by a name that annotations give?"""

import os
import re
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote


def exists(path: Path) -> bool:
    """Return whether there is a file of a name that annotations give; any text may be one."""
    return is_file(path) or is_dir(path)


def is_file(path: Path) -> bool:
    """Return whether a name that a file gives is one of a file; any text may be one."""
    return os.path.isfile(path)  # no error of names that are too long


def is_dir(path: Path) -> bool:
    """Return whether a name that a file gives is one of a folder; any text may be one."""
    return os.path.isdir(path)


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
