"""Do two artifacts detect the same?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet

from adapt.data.images import fit, open_image
from adapt.detector.file import DetectorInfo
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Precision
from export.graph.detector import DeployedDetector, RawHeads, read_onnx_info
from export.graph.onnx_file import load_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.run.onnx_session import ort_session
from export.run.runner import (
    Array,
    ImageDetections,
    OrtRunner,
    Runner,
    batch_detections,
    batch_of_one,
    in_type,
    unit,
)

# fp32 on both sides differs by about 1e-6 in scores and 1e-4 pixels; these leave a wide margin.
SCORE_TOL = 1e-4
BOX_TOL = 0.05
HEAD_TOL = 1e-3  # of logits and box deltas, fp32 on both sides; about 1e-5 is seen


@dataclass(frozen=True)
class MatchReport:
    """How the detections of two artifacts in the same images compare.

    Attributes:
        matched: Detections both have: same class, score and box within the tolerances.
        excused: Detections only one has, whose score is within the tolerance of a cut-off.
        missing: Other detections only the first has.
        extra: Other detections only the second has.
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
        """Whether every detection is matched or excused."""
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
        a: What the first artifact found.
        b: What the second found.
        score_tol: Largest difference of scores.
        box_tol: Largest difference of a box coordinate, in pixels.
        score_threshold: The detectors' threshold: a detection within ``score_tol`` above it may
            be missing on one side.
        detections: The detectors' limit per image: where it is reached, a detection within
            ``score_tol`` of the lowest score may have been cut off on one side.
    """
    pairs = _pairs(a, b, score_tol, box_tol)
    left_a = np.delete(a.scores, [i for i, _ in pairs])
    left_b = np.delete(b.scores, [j for _, j in pairs])
    cut_offs = [score_threshold]
    cut_offs += [x.scores.min() for x in (a, b) if detections and len(x.scores) >= detections]
    missing, extra = (_beyond(left, max(cut_offs) + score_tol) for left in (left_a, left_b))
    mine, theirs = np.array(pairs, dtype=int).reshape(-1, 2).T
    return MatchReport(
        matched=len(pairs),
        excused=len(left_a) + len(left_b) - missing - extra,
        missing=missing,
        extra=extra,
        score_difference=_largest(a.scores[mine] - b.scores[theirs]),
        box_difference=_largest(a.boxes[mine] - b.boxes[theirs]),
    )


def _pairs(
    a: ImageDetections, b: ImageDetections, score_tol: float, box_tol: float
) -> list[tuple[int, int]]:
    """Pair each detection of ``a``, best first, with the nearest free one of ``b``."""
    distance = np.abs(a.boxes[:, None] - b.boxes[None]).max(2, initial=0)
    distance[a.labels[:, None] != b.labels[None]] = np.inf
    distance[np.abs(a.scores[:, None] - b.scores[None]) > score_tol] = np.inf
    distance[distance > box_tol] = np.inf
    pairs = []
    for i, row in enumerate(distance):
        if row.min(initial=np.inf) < np.inf:
            pairs.append((i, int(row.argmin())))
            distance[:, row.argmin()] = np.inf
    return pairs


def _largest(difference: Array) -> float:
    """Return the largest absolute difference; infinite if one is no number."""
    largest = float(np.abs(difference).max(initial=0))
    return math.inf if math.isnan(largest) else largest


def _beyond(scores: Array, cut_off: float) -> int:
    return int((scores > cut_off).sum())


@dataclass(frozen=True)
class Tolerances:
    """What may differ between two artifacts that count as the same.

    Attributes:
        score: Largest difference of scores.
        box: Largest difference of a box coordinate, in pixels of the input.
        head: Largest difference of class logits and of box deltas; None compares them only to tell.
    """

    score: float = SCORE_TOL
    box: float = BOX_TOL
    head: float | None = HEAD_TOL

    @classmethod
    def of(cls, precision: Precision) -> "Tolerances":
        """Return what an export of this precision may differ from fp32."""
        match precision:
            case "fp32":
                return cls()
            case "fp16":
                return cls(0.01, 1.0, None)
            case "int8":
                return cls(0.1, 8.0, None)


@dataclass(frozen=True)
class ParityReport:
    """Whether two artifacts of a detector compute the same.

    Attributes:
        images: Number of images compared.
        tolerances: What may differ.
        match: The comparison of detections, summed over the images; None for raw heads alone.
        heads: Largest difference of class logits and of box deltas, where both were compared.
        worst: The image that differs most, and its comparison.
    """

    images: int
    tolerances: Tolerances
    match: MatchReport | None
    heads: dict[str, float]
    worst: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the two compute the same."""
        limit = self.tolerances.head
        same_heads = limit is None or all(d <= limit for d in self.heads.values())
        return same_heads and (self.match is None or self.match.same)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {"passed": self.passed, **asdict(self)}


class _Matches:
    """Compares the detections of one image after the other."""

    def __init__(self, info: DetectorInfo, tolerances: Tolerances) -> None:
        self._info, self._tolerances = info, tolerances
        self.total = MatchReport()
        self.worst: dict[str, Any] = {}
        self._most = -1.0

    def add(self, name: str, a: ImageDetections, b: ImageDetections) -> None:
        """Compare what two artifacts found in an image."""
        report = match_detections(
            a,
            b,
            score_tol=self._tolerances.score,
            box_tol=self._tolerances.box,
            score_threshold=self._info.detector.score_threshold,
            detections=self._info.detector.detections,
        )
        self.total += report
        # What only one of them has weighs more than any difference within the tolerances.
        badness = report.missing + report.extra + report.score_difference
        if badness > self._most:
            self.worst, self._most = {"image": name, **asdict(report)}, badness


def verify_export(
    model: RetinaNet,
    info: DetectorInfo,
    onnx_path: Path,
    images: Array,
    *,
    names: Sequence[str] = (),
    tolerances: Tolerances | None = None,
    same_candidates: bool = False,
) -> ParityReport:
    """Compare an exported detector on ONNX Runtime with PyTorch: raw heads and detections.

    Args:
        model: The detector that was exported; in evaluation mode.
        info: Its description.
        onnx_path: The export, with any tail; with tail ``none`` the raw heads alone are compared.
        images: uint8 ``[N, 3, H, W]``, fitted to the export's input; unless the export's batch is
            dynamic, N is a multiple of it.
        names: What the images are called in the report; their numbers by default.
        tolerances: What may differ; those of fp32 by default.
        same_candidates: Compare with the deployed modules in PyTorch, which look at the best
            ``nms_candidates`` only, instead of torchvision's own inference, which looks at all.

    Raises:
        AdaptError: If the file is not a detector that fits the images.
    """
    _, content = read_onnx_info(onnx_path)
    tolerances = tolerances or Tolerances()
    names = names or [str(number) for number in range(len(images))]
    step = content["batch"]
    batches = [images[start : start + step] for start in range(0, len(images), step)]
    heads = raw_head_differences(model, onnx_path, batches)
    if content["tail"] == "none":
        return ParityReport(len(images), tolerances, None, heads, {})
    matches = _Matches(info, tolerances)
    detect = _deployed(model, info) if same_candidates else partial(_eager, model)
    name = iter(names)
    with OrtRunner("ort-cpu", onnx_path) as runner:
        for batch in batches:
            for a, b in zip(detect(unit(batch)), runner.infer(batch), strict=True):
                matches.add(next(name), a, b)
    return ParityReport(len(images), tolerances, matches.total, heads, matches.worst)


@torch.inference_mode()
def _eager(model: RetinaNet, images: Array) -> list[ImageDetections]:
    found: list[dict[str, Tensor]] = model(list(torch.from_numpy(images)))
    names = ("boxes", "scores", "labels")
    return [ImageDetections(*(image[name].numpy() for name in names)) for image in found]


def _deployed(model: RetinaNet, info: DetectorInfo) -> Callable[[Array], list[ImageDetections]]:
    network = DeployedDetector(model, info, "onnx-nms").eval()

    @torch.inference_mode()
    def detect(images: Array) -> list[ImageDetections]:
        return batch_detections(*(found.numpy() for found in network(torch.from_numpy(images))))

    return detect


@torch.inference_mode()
def raw_head_differences(
    model: RetinaNet, onnx_path: Path, batches: Sequence[Array]
) -> dict[str, float]:
    """Return the largest difference of class logits and of box deltas.

    Args:
        model: The detector that was exported.
        onnx_path: The export, with any tail.
        batches: uint8 ``[B, 3, H, W]`` of the export's batch and input.

    Raises:
        AdaptError: If the file is not an exported detector.
    """
    _, content = read_onnx_info(onnx_path)
    exposed = with_outputs(load_onnx(onnx_path), RAW_HEADS).SerializeToString()
    session = ort_session("ort-cpu", exposed, threads=1)
    reference = RawHeads(model)
    differences = dict.fromkeys(RAW_HEADS, 0.0)
    for batch in batches:
        expected = reference(torch.from_numpy(unit(batch)))
        found = session.run(RAW_HEADS, {"images": in_type(batch, content["pixels"])})
        here = dict(zip(RAW_HEADS, (head.numpy() for head in expected), strict=True))
        _keep_largest(differences, here, dict(zip(RAW_HEADS, found, strict=True)))
    return differences


def _keep_largest(
    differences: dict[str, float], a: Mapping[str, Array], b: Mapping[str, Array]
) -> None:
    for name, most in differences.items():
        differences[name] = max(most, _largest(a[name] - b[name]))


def compare_artifacts(
    a: Runner,
    b: Runner,
    images: Sequence[Path],
    *,
    tolerances: Tolerances | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Compare what two artifacts of one detector find in images.

    Detections are compared, or the raw heads if one of the two ends in those.

    Args:
        a: Runner of the artifact to compare with.
        b: Runner of the other one.
        images: Image files.
        tolerances: What may differ; those of fp32 by default.
        progress: Called with (done, total) after every image.

    Raises:
        AdaptError: If the two have other classes, inputs or ends, or an image cannot be read.
    """
    if (a.info.classes, a.size) != (b.info.classes, b.size):
        raise AdaptError(
            f"the two detectors differ: {a.size} with {len(a.info.classes)} classes, {b.size} with "
            f"{len(b.info.classes)}; compare artifacts of one detector"
        )
    tolerances = tolerances or Tolerances()
    raw = "none" in (a.tail, b.tail)
    matches, heads = _Matches(a.info, tolerances), dict.fromkeys(RAW_HEADS, 0.0)
    for done, path in enumerate(images, start=1):
        pixels = batch_of_one(fit(open_image(path), a.size)[0])
        if raw:
            _keep_largest(heads, a.heads(pixels), b.heads(pixels))
        else:
            (found,), (other,) = a.infer(pixels), b.infer(pixels)
            matches.add(str(path), found, other)
        progress(done, len(images))
    if raw:
        return ParityReport(len(images), tolerances, None, heads, {})
    return ParityReport(len(images), tolerances, matches.total, {}, matches.worst)
