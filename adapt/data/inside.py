"""May a name that a file gives lead there? (not out of the data set's folder, unless you allow it)

Names are text of strangers, links are not: whoever keeps images on another disk links a folder of
them, so links of folders are followed wherever they lie. A single image that is a link may not lead
out: an archive of a data set can hold one to any file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from adapt.data.paths import real_path
from adapt.errors import AdaptError

# No key of a recipe: one that came with the data would allow itself what it likes.
ALLOWED = "ADAPT_IMAGE_FOLDERS"
FIX = f"move it in there, or list its folder in the environment variable {ALLOWED} to allow it"


def leaves(path: Path, folders: Sequence[Path]) -> bool:
    """Return whether a path leads out of all folders, absolute or by ``..``; links are followed.

    Usual names are not looked up: a hundred thousand of them take minutes on a network drive.
    """
    for folder in folders:
        if path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts:
            return False
    return not _within(path, folders)


def check_inside(path: Path, folders: Sequence[Path], named: str) -> None:
    """Check that a path does not lead out of folders.

    Args:
        path: What a name of a file became.
        folders: The data set's own; those that the user allows are added.
        named: The beginning of a sentence about it, with the name and the file that gives it.

    Raises:
        AdaptError: If it does.
    """
    if leaves(path, folders):
        raise AdaptError(f"{named}, which leads out of the folder {folders[0]}; {FIX}")


def check_link(path: Path, folders: Sequence[Path]) -> None:
    """Check that a file, if it is a link itself, does not lead out of folders.

    Linked folders on its way are among them.

    Raises:
        AdaptError: If it does.
    """
    if leads_out(path, folders):
        raise AdaptError(
            f"image {path} is a link to {real_path(path)}, out of the data set's folder; {FIX}"
        )


def leads_out(path: Path, folders: Sequence[Path]) -> bool:
    """Return whether a file is a link out of all folders; see :func:`check_link`."""
    try:
        linked = path.is_symlink()
    except (OSError, ValueError):  # too long, with a zero byte: any text may be a name
        linked = False
    on_its_way = [one for one in path.parents if any(one.is_relative_to(f) for f in folders)]
    return linked and not _within(path, (*folders, *on_its_way))


def _within(path: Path, folders: Sequence[Path]) -> bool:
    real = Path(real_path(path))
    allowed = [Path(one).expanduser() for one in os.environ.get(ALLOWED, "").split(os.pathsep)]
    known = (*folders, *(one for one in allowed if one.parts))
    return any(real.is_relative_to(real_path(folder)) for folder in known)
