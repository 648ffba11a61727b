"""Do two artifacts detect the same?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet

from adapt.detector_file import DetectorInfo
from adapt.errors import AdaptError
from adapt.images import fit, open_image
from adapt.progress import Progress, silent
from export.graph import RAW_HEADS, DeployedDetector, RawHeads, read_onnx_info
from export.runner import (
    Array,
    ImageDetections,
    OrtRunner,
    Runner,
    batch_detections,
    batch_of_one,
    ort_session,
)

# fp32 on both sides differs by about 1e-6 in scores and 1e-4 pixels; these leave a wide margin.
SCORE_TOL = 1e-4
BOX_TOL = 0.05


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
    return float(np.abs(difference).max(initial=0))


def _beyond(scores: Array, cut_off: float) -> int:
    return int((scores > cut_off).sum())


@dataclass(frozen=True)
class ParityReport:
    """Whether an exported detector computes what the PyTorch detector computes.

    Attributes:
        images: Number of images compared.
        score_tol: Largest allowed difference of scores.
        box_tol: Largest allowed difference of box coordinates, in pixels.
        match: The comparison, summed over the images.
    """

    images: int
    score_tol: float
    box_tol: float
    match: MatchReport

    @property
    def passed(self) -> bool:
        """Whether the two detect the same."""
        return self.match.same

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {"passed": self.passed, **asdict(self)}


def verify_export(
    model: RetinaNet,
    info: DetectorInfo,
    onnx_path: Path,
    images: Array,
    *,
    score_tol: float = SCORE_TOL,
    box_tol: float = BOX_TOL,
    same_candidates: bool = False,
) -> ParityReport:
    """Compare an exported detector on ONNX Runtime with torchvision's own inference.

    Args:
        model: The detector that was exported; in evaluation mode.
        info: Its description.
        onnx_path: The export, with tail ``tensor-nms``.
        images: float32 ``[N, 3, H, W]`` in [0, 1], fitted to the export's input; N is a multiple
            of the export's batch.
        score_tol: Largest difference of scores.
        box_tol: Largest difference of a box coordinate, in pixels.
        same_candidates: Compare with the deployed modules in PyTorch instead, which look at the
            best ``nms_candidates`` only, where torchvision looks at all.

    Raises:
        AdaptError: If the file is not a detector that fits the images.
    """
    _, content = read_onnx_info(onnx_path)
    total = MatchReport()
    detect = _deployed(model, info) if same_candidates else partial(_eager, model)
    with OrtRunner("ort-cpu", onnx_path) as runner:
        for start in range(0, len(images), content["batch"]):
            batch = images[start : start + content["batch"]]
            for a, b in zip(detect(batch), runner.infer(batch), strict=True):
                total += match_detections(
                    a,
                    b,
                    score_tol=score_tol,
                    box_tol=box_tol,
                    score_threshold=info.detector.score_threshold,
                    detections=info.detector.detections,
                )
    return ParityReport(len(images), score_tol, box_tol, total)


@torch.inference_mode()
def _eager(model: RetinaNet, images: Array) -> list[ImageDetections]:
    found: list[dict[str, Tensor]] = model(list(torch.from_numpy(images)))
    names = ("boxes", "scores", "labels")
    return [ImageDetections(*(image[name].numpy() for name in names)) for image in found]


def _deployed(model: RetinaNet, info: DetectorInfo) -> Callable[[Array], list[ImageDetections]]:
    network = DeployedDetector(model, info).eval()

    @torch.inference_mode()
    def detect(images: Array) -> list[ImageDetections]:
        return batch_detections(*(found.numpy() for found in network(torch.from_numpy(images))))

    return detect


@torch.inference_mode()
def compare_raw_heads(model: RetinaNet, onnx_path: Path, images: Array) -> dict[str, float]:
    """Return the largest difference of class logits and of box deltas.

    Args:
        model: The detector that was exported.
        onnx_path: The export, with tail ``none``.
        images: float32 ``[B, 3, H, W]`` in [0, 1] of the export's batch and input.

    Raises:
        AdaptError: If the file is not an exported detector.
    """
    read_onnx_info(onnx_path)
    expected = RawHeads(model)(torch.from_numpy(images))
    session = ort_session("ort-cpu", onnx_path.read_bytes(), threads=1)
    found = session.run(RAW_HEADS, {"images": images})
    differences = (np.abs(a.numpy() - b).max() for a, b in zip(expected, found, strict=True))
    return {name: float(d) for name, d in zip(RAW_HEADS, differences, strict=True)}


def compare_artifacts(
    a: Runner,
    b: Runner,
    images: Sequence[Path],
    *,
    score_tol: float = SCORE_TOL,
    box_tol: float = BOX_TOL,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compare what two artifacts of one detector find in images.

    Args:
        a: Runner of the artifact to compare with.
        b: Runner of the other one.
        images: Image files.
        score_tol: Largest difference of scores.
        box_tol: Largest difference of a box coordinate, in pixels of the input.
        progress: Called with (done, total) after every image.

    Returns:
        Whether all is the same, the sum over the images, and the image that differs most.

    Raises:
        AdaptError: If the two have other classes or inputs, or an image cannot be read.
    """
    if (a.info.classes, a.size) != (b.info.classes, b.size):
        raise AdaptError(
            f"the two detectors differ: {a.size} with {len(a.info.classes)} classes, {b.size} with "
            f"{len(b.info.classes)}; compare artifacts of one detector"
        )
    limits = a.info.detector
    total, worst, most = MatchReport(), None, -1.0
    for done, path in enumerate(images, start=1):
        pixels = batch_of_one(fit(open_image(path), a.size)[0])
        (found,), (other,) = a.infer(pixels), b.infer(pixels)
        report = match_detections(
            found,
            other,
            score_tol=score_tol,
            box_tol=box_tol,
            score_threshold=limits.score_threshold,
            detections=limits.detections,
        )
        total += report
        # What only one of them has weighs more than any difference within the tolerances.
        badness = report.missing + report.extra + report.score_difference
        if badness > most:
            worst, most = {"image": str(path), **asdict(report)}, badness
        progress(done, len(images))
    return {"passed": total.same, "images": len(images), "match": asdict(total), "worst": worst}
