"""How often is an image shown, so that rare classes are learned too?"""

import math
from collections.abc import Sequence

import numpy as np

from adapt.data.coco import CocoSplit


def repeat_factors(split: CocoSplit, threshold: float) -> list[float]:
    """Return how often every image is shown, relative to one of frequent classes only.

    A class in a share ``f`` of the images has ``max(1, sqrt(threshold / f))``, an image the most of
    its classes: repeat-factor sampling (Gupta et al., LVIS, section 4.2).

    Args:
        split: The images.
        threshold: Share of the images below which a class is rare.
    """
    shown = [set(boxes.labels[~boxes.crowd].tolist()) for boxes in split.boxes]
    counts = np.bincount([label for labels in shown for label in labels] or [0])
    of_class = [
        max(1.0, math.sqrt(threshold * len(split) / count)) if count else 1.0 for count in counts
    ]
    return [max((of_class[label] for label in labels), default=1.0) for labels in shown]


def repeated(factors: Sequence[float], chance: np.random.Generator) -> list[int]:
    """Return the images of an epoch in random order: as many as there are, rare ones repeated.

    Args:
        factors: Of every image; what is left of whole numbers is a probability.
        chance: Where random numbers come from.
    """
    whole = np.floor(factors).astype(int)
    counts = whole + (chance.random(len(whole)) < np.asarray(factors) - whole)
    order: list[int] = chance.permutation(np.repeat(np.arange(len(whole)), counts)).tolist()
    return order[: len(whole)]
