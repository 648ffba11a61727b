"""Which detections do two artifacts have in common in an image, within which tolerances?"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapt.detector.config import DetectorConfig
from adapt.runtime import Precision
from export.run.inference import Array, ImageDetections

# Two runtimes in fp32 differ by about 1e-6 in scores, 1e-4 pixels in boxes, and 1e-5 in logits and
# box deltas; these tolerances leave a wide margin.
SCORE_TOL = 1e-4
BOX_TOL = 0.05
HEAD_TOL = 1e-3


@dataclass(frozen=True)
class MatchReport:
    """How many detections two artifacts have in common in the same images.

    Attributes:
        matched: Detections of both: same class, score and box within the tolerances.
        excused: Detections of one, whose score is within the tolerance of a cut-off.
        missing: Other detections of the first alone.
        extra: Other detections of the second alone.
        score_difference: Largest difference of matched scores.
        box_difference: Largest difference of matched box coordinates in pixels.
    """

    matched: int = 0
    excused: int = 0
    missing: int = 0
    extra: int = 0
    score_difference: float = 0.0
    box_difference: float = 0.0

    @property
    def same(self) -> bool:
        """Whether all detections are matched or excused."""
        return self.missing == 0 and self.extra == 0

    def __add__(self, other: "MatchReport") -> "MatchReport":
        return MatchReport(
            self.matched + other.matched,
            self.excused + other.excused,
            self.missing + other.missing,
            self.extra + other.extra,
            max(self.score_difference, other.score_difference),
            max(self.box_difference, other.box_difference),
        )


def match_detections(
    a: ImageDetections,
    b: ImageDetections,
    *,
    score_tol: float,
    box_tol: float,
    score_threshold: float = 0.0,
    detections: int | None = None,
) -> MatchReport:
    """Match the detections of two artifacts in one image, whatever the order of near-equal scores.

    Args:
        a: Detections of the first artifact.
        b: Detections of the second.
        score_tol: Largest difference of scores.
        box_tol: Largest difference of a box coordinate, in pixels.
        score_threshold: The detectors' threshold: a detection within ``score_tol`` above it may
            be missing on one side.
        detections: The detectors' limit per image: where it is reached, a detection within
            ``score_tol`` of the lowest score may have been cut off on one side.
    """
    pairs = _pairs(a, b, score_tol, box_tol)
    in_a, in_b = np.array(pairs, dtype=int).reshape(-1, 2).T
    unmatched_a, unmatched_b = np.delete(a.scores, in_a), np.delete(b.scores, in_b)
    cut_offs = [score_threshold]
    cut_offs += [
        np.nan_to_num(x.scores).min() for x in (a, b) if detections and len(x.scores) >= detections
    ]
    missing, extra = (
        int((~(scores <= max(cut_offs) + score_tol)).sum()) for scores in (unmatched_a, unmatched_b)
    )
    return MatchReport(
        matched=len(pairs),
        excused=len(unmatched_a) + len(unmatched_b) - missing - extra,
        missing=missing,
        extra=extra,
        score_difference=largest(a.scores[in_a] - b.scores[in_b]),
        box_difference=largest(a.boxes[in_a] - b.boxes[in_b]),
    )


def _pairs(
    a: ImageDetections, b: ImageDetections, score_tol: float, box_tol: float
) -> list[tuple[int, int]]:
    """Pair each detection of ``a``, best first, with the nearest of ``b`` that has no pair yet."""
    distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(2, initial=0)
    distance[a.labels[:, None] != b.labels[None]] = np.inf
    # What is not a number is not within any tolerance.
    distance[~(np.abs(a.scores[:, None] - b.scores[None]) <= score_tol)] = np.inf
    distance[~(distance <= box_tol)] = np.inf
    pairs = []
    for i, row in enumerate(distance):
        if row.min(initial=np.inf) < np.inf:
            pairs.append((i, int(row.argmin())))
            distance[:, row.argmin()] = np.inf
    return pairs


def largest(difference: Array) -> float:
    """Return the largest absolute difference; infinite if one is NaN."""
    value = float(np.abs(difference).max(initial=0))
    return math.inf if math.isnan(value) else value


@dataclass(frozen=True)
class Tolerances:
    """How much two artifacts that count as the same may differ.

    Attributes:
        score: Largest difference of scores.
        box: Largest difference of a box coordinate, in pixels of the input.
        head: Largest difference of class logits and of box deltas; None allows any.
    """

    score: float = SCORE_TOL
    box: float = BOX_TOL
    head: float | None = HEAD_TOL

    @classmethod
    def of(cls, precision: Precision) -> "Tolerances":
        """Return how much an export of this precision may differ from fp32 PyTorch."""
        match precision:
            case "fp32":
                return cls()
            case "fp16":
                return cls(0.01, 1.0, None)
            case "int8":
                return cls(0.1, 8.0, None)


class MatchTotals:
    """Compares the detections of one image after the other; keeps the sum and the worst image.

    Args:
        detector: The detector.
        tolerances: How much may differ.

    Attributes:
        total: The comparison, summed over the images.
        worst: The image whose detections differ most, and their comparison.
    """

    def __init__(self, detector: DetectorConfig, tolerances: Tolerances) -> None:
        self._detector, self._tolerances = detector, tolerances
        self.total = MatchReport()
        self.worst: dict[str, Any] = {}

    def add(self, name: str, a: ImageDetections, b: ImageDetections) -> None:
        """Compare the detections of two artifacts in an image."""
        report = match_detections(
            a,
            b,
            score_tol=self._tolerances.score,
            box_tol=self._tolerances.box,
            score_threshold=self._detector.score_threshold,
            detections=self._detector.detections,
        )
        self.total += report
        self.worst = max(self.worst, {"image": name, **asdict(report)}, key=disagreement)


def disagreement(of_image: Mapping[str, Any]) -> float:
    """Return how much the comparison of an image says that the two differ; -1 for none."""
    # One unmatched detection outweighs any difference of scores: these lie in [0, 1].
    counted = ("missing", "extra", "score_difference")
    return sum(of_image[name] for name in counted) if of_image else -1.0
