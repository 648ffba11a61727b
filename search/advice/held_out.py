"""Which images are held out of a data set that has no split for validation?"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapt.artifacts import (
    atomic_folder,
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.data.alike import difference_hash, groups_of
from adapt.data.coco import CocoSplit
from adapt.data.images import open_image
from adapt.data.pooled import Entry, pooled, write_divided
from adapt.errors import AdaptError
from adapt.progress import Progress, silent

SHARE = 0.2
LEAST = 5  # images of two splits
ALIKE = 6  # bits of 64 by which the hashes of near-duplicates differ at most
DRAWS = 20  # of groups, until training and validation have boxes
MARKER = "held-out.json"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def hold_out(
    train: CocoSplit,
    folder: Path,
    test: CocoSplit | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, int]:
    """Write a data set with ``train`` and ``val``, whose images are those of one split.

    Images that look alike, such as frames of a film, stay together.

    Args:
        train: The images to divide.
        folder: The folder to write; one that holds the same division is used again.
        test: Images that become the split ``test`` as they are, of the same classes.
        seed: Which groups are held out.
        progress: Told after every image.

    Returns:
        Images of each part, and groups.

    Raises:
        AdaptError: If there are too few images or boxes, all images look alike, or the folder holds
            something else.
    """
    if len(train) < LEAST:
        raise AdaptError(
            f"{train.annotations} has {len(train)} images, too few to hold some out; annotate more"
        )
    splits = [train, test] if test else [train]
    made_from = [[one.sha256, str(one.folder.resolve())] for one in splits]
    key = content_hash([made_from, seed, SHARE, ALIKE])
    if folder.exists():
        return _held_before(folder, key)
    pool = pooled(splits)
    paths = {image.path for image in train.images}
    places = np.array([n for n, (_, image, _) in enumerate(pool) if image.path in paths])
    entries = [pool[place] for place in places]
    groups = alike(entries, progress)
    held = _held_with_boxes(groups, entries, train, seed)
    parts = {"train": places[~held].tolist(), "val": places[held].tolist()}
    if test:
        parts["test"] = sorted(set(range(len(pool))) - set(places.tolist()))
    counts = {"groups": len(set(groups.tolist()))}
    counts |= {name: len(part) for name, part in parts.items()}
    with atomic_folder(folder) as temporary:
        write_divided(splits, parts, temporary)
        write_json(temporary / MARKER, header("held-out", key=key, counts=counts))
    return counts


def _held_before(folder: Path, key: str) -> dict[str, int]:
    marker = folder / MARKER
    content = check_header(read_json(marker, "it"), "held-out", marker) if marker.is_file() else {}
    if content.get("key") != key:
        raise AdaptError(
            f"{folder} holds something else, or a division of other images; choose another --out, "
            "or delete it"
        )
    with parsing("division", marker, "delete its folder"):
        return typed(dict[str, int], content["counts"])


def alike(entries: list[Entry], progress: Progress = silent) -> Ints:
    """Return ``int64[N]``, the group of every image.

    Two images whose difference hashes (of brightness, 8x8) are within :data:`ALIKE` bits are in one
    group, and so are all that are connected by such pairs.

    Args:
        entries: The images, with their boxes.
        progress: Told after every image.
    """
    hashes = []
    for done, (_, image, _) in enumerate(entries, start=1):
        hashes.append(difference_hash(open_image(image.checked_path())))
        progress(done, len(entries), image.path.name)
    return groups_of(hashes, ALIKE)


def _held_with_boxes(groups: Ints, entries: list[Entry], train: CocoSplit, seed: int) -> Bools:
    """Return which images are held out, so that both parts have boxes of single objects.

    Raises:
        AdaptError: If that is not possible.
    """
    has_boxes = np.array([bool((~boxes.crowd).any()) for _, _, boxes in entries])
    for draw in range(DRAWS):
        held = _drawn(groups, np.random.default_rng([seed, draw]))
        if has_boxes[held].any() and has_boxes[~held].any():
            return held
    raise AdaptError(
        f"the {len(groups)} images of {train.annotations} look alike, or too few of them have "
        "boxes, so that none can be held out; give the data set a split `val` of other images"
    )


def _drawn(groups: Ints, chance: np.random.Generator) -> Bools:
    """Return which images are held out: random groups, as long as they are a fifth of all images.

    Where every group is larger than that, it is the smallest one.
    """
    held = np.zeros(len(groups), dtype=np.bool_)
    labels, sizes = np.unique(groups, return_counts=True)
    for group in chance.permutation(labels):
        members = groups == group
        if held.sum() + members.sum() <= SHARE * len(groups):
            held |= members
    return held if held.any() else groups == labels[sizes.argmin()]
