"""Which images are held out of a data set that has training images only?"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapt.artifacts import atomic_folder, content_hash, file_hash, header, read_json, write_json
from adapt.data.coco import CocoSplit
from adapt.data.images import open_image
from adapt.data.pooled import pooled, write_divided
from adapt.errors import AdaptError
from adapt.progress import Progress, silent

SHARE = 0.2
LEAST = 5  # images of two splits
ALIKE = 6  # bits of 64 by which the hashes of near-duplicates differ at most
MARKER = "held-out.json"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def hold_out(
    split: CocoSplit, folder: Path, seed: int = 0, progress: Progress = silent
) -> dict[str, int]:
    """Write a data set with ``train`` and ``val``, whose images are those of one split.

    Images that look alike, such as frames of a film, stay together.

    Args:
        split: The images.
        folder: The folder to write; one that holds the same division is used again.
        seed: Which groups are held out.
        progress: Told after every image.

    Returns:
        Images of each part, and groups.

    Raises:
        AdaptError: If there are too few images, all look alike, or the folder holds something else.
    """
    if len(split) < LEAST:
        raise AdaptError(
            f"{split.annotations} has {len(split)} images, too few to hold some out; annotate more"
        )
    key = content_hash([file_hash(split.annotations), seed, SHARE, ALIKE])
    marker = folder / MARKER
    if folder.exists():
        content = read_json(marker, "division")
        if content.get("key") != key:
            raise AdaptError(f"{folder} holds another division; choose another --out, or delete it")
        return dict(content["counts"])
    groups = alike(split, progress)
    held, counts = _chosen(groups, seed), {"groups": len(set(groups.tolist()))}
    if held.all() or not held.any():
        raise AdaptError(
            f"all {len(split)} images of {split.annotations} look alike, so that none can be held "
            "out; give it a split `val` of other images"
        )
    parts = {"train": np.flatnonzero(~held), "val": np.flatnonzero(held)}
    counts |= {name: len(places) for name, places in parts.items()}
    with atomic_folder(folder) as temporary:
        write_divided([split], {name: places.tolist() for name, places in parts.items()}, temporary)
        write_json(temporary / MARKER, header("held-out", key=key, counts=counts))
    return counts


def alike(split: CocoSplit, progress: Progress = silent) -> Ints:
    """Return ``int64[N]``, the group of every image, in the order of ``pooled([split])``.

    Two images whose difference hashes (of brightness, 8x8) are within :data:`ALIKE` bits are in one
    group, and so are all that are connected by such pairs.
    """
    entries = pooled([split])
    hashes = []
    for done, (_, image, _) in enumerate(entries, start=1):
        hashes.append(_difference_hash(image.path))
        progress(done, len(entries), image.path.name)
    groups: Ints = np.arange(len(entries))
    stacked = np.stack(hashes)
    for number, one in enumerate(stacked):
        near = np.flatnonzero((stacked != one).sum(1) <= ALIKE)
        joined = np.isin(groups, groups[near])
        groups[joined] = groups[number]
    return groups


def _difference_hash(path: Path) -> Bools:
    grey = open_image(path).convert("L").resize((9, 8), Image.Resampling.BOX)
    pixels = np.asarray(grey, dtype=np.int16)
    brighter: Bools = (pixels[:, 1:] > pixels[:, :-1]).ravel()
    return brighter


def _chosen(groups: Ints, seed: int) -> Bools:
    """Return which images are held out: random groups, as long as they are a fifth of all images.

    Where every group is larger than that, it is the smallest one.
    """
    held = np.zeros(len(groups), dtype=np.bool_)
    labels, sizes = np.unique(groups, return_counts=True)
    for group in np.random.default_rng(seed).permutation(labels):
        members = groups == group
        if held.sum() + members.sum() <= SHARE * len(groups):
            held |= members
    return held if held.any() else groups == labels[sizes.argmin()]
