"""Do two artifacts of one detector compute the same detections, or the same raw heads?"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models.detection import RetinaNet

from adapt.data.images import open_image
from adapt.detector.file import DetectorInfo
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Precision
from export.graph.detector import DeployedDetector, read_onnx_info
from export.graph.onnx_file import load_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.run.inference import (
    Array,
    ImageDetections,
    Runner,
    batch_detections,
    batch_of_one,
    in_type,
    unit,
)
from export.run.onnx_session import ort_session
from export.run.runner import OrtRunner, torch_heads

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
    cut_offs += [x.scores.min() for x in (a, b) if detections and len(x.scores) >= detections]
    missing, extra = (
        int((scores > max(cut_offs) + score_tol).sum()) for scores in (unmatched_a, unmatched_b)
    )
    return MatchReport(
        matched=len(pairs),
        excused=len(unmatched_a) + len(unmatched_b) - missing - extra,
        missing=missing,
        extra=extra,
        score_difference=_largest(a.scores[in_a] - b.scores[in_b]),
        box_difference=_largest(a.boxes[in_a] - b.boxes[in_b]),
    )


def _pairs(
    a: ImageDetections, b: ImageDetections, score_tol: float, box_tol: float
) -> list[tuple[int, int]]:
    """Pair each detection of ``a``, best first, with the nearest of ``b`` that has no pair yet."""
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
    """Return the largest absolute difference; infinite if one is NaN."""
    largest = float(np.abs(difference).max(initial=0))
    return math.inf if math.isnan(largest) else largest


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


@dataclass(frozen=True)
class ParityReport:
    """Whether two artifacts of a detector compute the same.

    Attributes:
        images: Number of images compared.
        tolerances: How much the two may differ.
        match: The comparison of detections, summed over the images; None if only raw heads were
            compared.
        heads: Largest difference of class logits and of box deltas; empty if only detections were
            compared.
        worst: The image whose detections differ most, and their comparison.
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


class _MatchTotals:
    """Compares the detections of one image after the other; keeps the sum and the worst image."""

    def __init__(self, info: DetectorInfo, tolerances: Tolerances) -> None:
        self._info, self._tolerances = info, tolerances
        self.total = MatchReport()
        self.worst: dict[str, Any] = {}
        self._worst_difference = -1.0

    def add(self, name: str, a: ImageDetections, b: ImageDetections) -> None:
        """Compare the detections of two artifacts in an image."""
        report = match_detections(
            a,
            b,
            score_tol=self._tolerances.score,
            box_tol=self._tolerances.box,
            score_threshold=self._info.detector.score_threshold,
            detections=self._info.detector.detections,
        )
        self.total += report
        # One unmatched detection outweighs any difference of scores: these lie in [0, 1].
        difference = report.missing + report.extra + report.score_difference
        if difference > self._worst_difference:
            self._worst_difference = difference
            self.worst = {"image": name, **asdict(report)}


@dataclass(frozen=True)
class NamedImages:
    """Images to compare artifacts on.

    Attributes:
        pixels: uint8 ``[N, 3, H, W]``, fitted to the detector's input.
        names: What they are called in a report, such as their files; their numbers if empty.
    """

    pixels: Array
    names: Sequence[str] = ()


def verify_export(
    model: RetinaNet,
    info: DetectorInfo,
    onnx_path: Path,
    images: NamedImages,
    *,
    tolerances: Tolerances | None = None,
    same_candidates: bool = False,
) -> ParityReport:
    """Compare an exported detector on ONNX Runtime with PyTorch: raw heads and detections.

    Args:
        model: The detector that was exported; in evaluation mode.
        info: Its description.
        onnx_path: The export, with any tail; with tail ``none`` the raw heads alone are compared.
        images: As many as fill whole batches of the export, unless its batch is dynamic.
        tolerances: How much may differ; by default those of fp32.
        same_candidates: Compare with :class:`export.graph.detector.DeployedDetector`, which
            suppresses among the best ``nms_candidates`` as the export does, instead of
            torchvision's own inference, which suppresses among all.

    Raises:
        AdaptError: If the file is not a detector that fits the images.
    """
    _, content = read_onnx_info(onnx_path)
    tolerances = tolerances or Tolerances()
    number, step = len(images.pixels), content["batch"]
    batches = [images.pixels[start : start + step] for start in range(0, number, step)]
    heads = raw_head_differences(model, onnx_path, batches)
    if content["tail"] == "none":
        return ParityReport(number, tolerances, None, heads, {})
    totals = _MatchTotals(info, tolerances)
    detect = _deployed(model, info) if same_candidates else _torchvision(model)
    name = iter(images.names or map(str, range(number)))
    with OrtRunner("ort-cpu", onnx_path) as runner:
        for batch in batches:
            for a, b in zip(detect(unit(batch)), runner.infer(batch), strict=True):
                totals.add(next(name), a, b)
    return ParityReport(number, tolerances, totals.total, heads, totals.worst)


def _torchvision(model: RetinaNet) -> Callable[[Array], list[ImageDetections]]:
    """Return torchvision's own inference on float32 ``[B, 3, H, W]`` in [0, 1]."""

    @torch.inference_mode()
    def detect(images: Array) -> list[ImageDetections]:
        detections = model(list(torch.from_numpy(images)))
        return [ImageDetections.from_torchvision(image) for image in detections]

    return detect


def _deployed(model: RetinaNet, info: DetectorInfo) -> Callable[[Array], list[ImageDetections]]:
    """Return what the export computes, in PyTorch, on float32 ``[B, 3, H, W]`` in [0, 1]."""
    network = DeployedDetector(model, info, "onnx-nms").eval()

    @torch.inference_mode()
    def detect(images: Array) -> list[ImageDetections]:
        return batch_detections(*(output.numpy() for output in network(torch.from_numpy(images))))

    return detect


def raw_head_differences(
    model: RetinaNet, onnx_path: Path, batches: Sequence[Array]
) -> dict[str, float]:
    """Return the largest difference of class logits and of box deltas from PyTorch's.

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
    differences = dict.fromkeys(RAW_HEADS, 0.0)
    for batch in batches:
        heads = session.run(RAW_HEADS, {"images": in_type(batch, content["pixels"])})
        exported = dict(zip(RAW_HEADS, heads, strict=True))
        _keep_largest(differences, torch_heads(model, batch), exported)
    return differences


def _keep_largest(
    differences: dict[str, float], a: Mapping[str, Array], b: Mapping[str, Array]
) -> None:
    for name, largest in differences.items():
        differences[name] = max(largest, _largest(a[name] - b[name]))


def compare_artifacts(
    a: Runner,
    b: Runner,
    images: Sequence[Path],
    *,
    tolerances: Tolerances | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Compare the detections of two artifacts in images, or their raw heads.

    The raw heads are compared if one of the two artifacts ends in them.

    Args:
        a: Runner of the artifact to compare with.
        b: Runner of the other one.
        images: Image files.
        tolerances: How much may differ; by default those of fp32.
        progress: Called with (done, total) after every image.

    Raises:
        AdaptError: If classes or inputs of the two differ, if only one of them can give raw heads,
            or if an image cannot be read.
    """
    if (a.info.classes, a.fitting) != (b.info.classes, b.fitting):
        raise AdaptError(
            f"the two detectors differ: {a.fitting} with {len(a.info.classes)} classes, "
            f"{b.fitting} with {len(b.info.classes)}; compare artifacts of one detector"
        )
    tolerances = tolerances or Tolerances()
    raw = "none" in (a.tail, b.tail)
    totals, heads = _MatchTotals(a.info, tolerances), dict.fromkeys(RAW_HEADS, 0.0)
    for done, path in enumerate(images, start=1):
        pixels = batch_of_one(a.fitting(open_image(path))[0])
        if raw:
            _keep_largest(heads, a.heads(pixels), b.heads(pixels))
        else:
            (in_a,), (in_b,) = a.infer(pixels), b.infer(pixels)
            totals.add(str(path), in_a, in_b)
        progress(done, len(images))
    if raw:
        return ParityReport(len(images), tolerances, None, heads, {})
    return ParityReport(len(images), tolerances, totals.total, {}, totals.worst)
