"""Which library evaluates as COCO does? (pycocotools, or one in C++ that gives the same numbers)"""

from importlib import metadata
from typing import Any, NamedTuple

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Versions of faster-coco-eval in which precisions and recalls are those of pycocotools
# (`tests/test_adapt_data_coco_library.py`); others are left alone, wherever they come from.
FIRST_EQUAL, FIRST_UNKNOWN = (1, 8), (2, 0)


class Library(NamedTuple):
    """Classes with the methods of pycocotools.

    Attributes:
        coco: Annotations or detections.
        evaluation: What compares them.
    """

    coco: type[Any]
    evaluation: type[Any]


PYCOCOTOOLS = Library(COCO, COCOeval)


def fastest() -> Library:
    """Return faster-coco-eval where a version is installed that was compared, or pycocotools."""
    if not FIRST_EQUAL <= _installed() < FIRST_UNKNOWN:
        return PYCOCOTOOLS
    from faster_coco_eval import COCO as FastCOCO
    from faster_coco_eval import COCOeval_faster

    return Library(FastCOCO, COCOeval_faster)


def _installed() -> tuple[int, ...]:
    """Return the first two numbers of its version; zero if it is not installed."""
    try:
        version = metadata.version("faster-coco-eval")
    except metadata.PackageNotFoundError:
        return (0,)
    return tuple(int(number) for number in version.split(".")[:2])
