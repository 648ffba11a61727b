"""Which images look alike? (frames of a film, copies in another size or quality)"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

BITS = 64
CHUNK = 4096  # images that are compared with all others at once

Hashes = NDArray[np.bool_]  # [N, BITS]
Ints = NDArray[np.int64]


def difference_hash(image: Image) -> Hashes:
    """Return ``bool[64]``: in an 8x8 grid, whether brightness rises to the right.

    It hardly changes with size, quality or colour ("dHash").
    """
    pixels = np.asarray(image.convert("L").resize((9, 8), Resampling.BOX), dtype=np.int16)
    rises: Hashes = (pixels[:, 1:] > pixels[:, :-1]).ravel()
    return rises


def near(hashes: Hashes, others: Hashes, bits: int) -> Iterator[tuple[int, Ints]]:
    """Yield for each hash the places of the others that differ in at most so many bits."""
    signs = np.where(others, 1.0, -1.0).astype(np.float32)
    for start in range(0, len(hashes), CHUNK):
        part = np.where(hashes[start : start + CHUNK], 1.0, -1.0).astype(np.float32)
        distances = (BITS - part @ signs.T) / 2
        for row, distance in enumerate(distances):
            yield start + row, np.flatnonzero(distance <= bits)


def groups_of(hashes: Sequence[Hashes], bits: int) -> Ints:
    """Return ``int64[N]``, the group of every image; pairs within so many bits are in one group."""
    groups: Ints = np.arange(len(hashes))
    stacked = np.stack(hashes)
    for number, alike in near(stacked, stacked, bits):
        if len(alike) > 1:
            groups[np.isin(groups, groups[alike])] = groups[number]
    return groups
