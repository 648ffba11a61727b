"""Do two artifacts of one detector compute the same detections, or the same raw heads?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models.detection import RetinaNet

from adapt.data.images import Fitting, InputSize, open_image
from adapt.detector.file import DetectorInfo
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from export.graph.detector import DeployedDetector, read_onnx_info
from export.graph.onnx_file import load_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.run.fits import FitReport, compare_fits
from export.run.inference import (
    Array,
    ImageDetections,
    Runner,
    batch_detections,
    batch_of_one,
    in_type,
    unit,
)
from export.run.matching import MatchReport, MatchTotals, Tolerances, disagreement, largest
from export.run.onnx_session import ort_session
from export.run.runner import OrtRunner, torch_heads


@dataclass(frozen=True)
class ParityReport:
    """Whether two artifacts of a detector compute the same, and see images alike.

    Attributes:
        images: Number of images compared.
        tolerances: How much the two may differ.
        match: The comparison of detections, summed over the images; None if only raw heads were
            compared.
        heads: Largest difference of class logits and of box deltas; empty if only detections were
            compared.
        worst: The image whose detections differ most, and their comparison.
        fit: How the two fit the images into their inputs, each in its own way, and what they find
            then; None if both do it in one way. The other comparisons are on the same input.
    """

    images: int
    tolerances: Tolerances
    match: MatchReport | None
    heads: dict[str, float]
    worst: dict[str, Any]
    fit: FitReport | None = None

    @property
    def same(self) -> bool:
        """Whether the two compute the same of the same input."""
        limit = self.tolerances.head
        same_heads = limit is None or all(d <= limit for d in self.heads.values())
        return same_heads and (self.match is None or self.match.same)

    @property
    def passed(self) -> bool:
        """Whether the two compute the same, and see the images at the same scale."""
        return self.same and (self.fit is None or self.fit.same)

    @property
    def reasons(self) -> list[str]:
        """Why the two are not the same, as sentences; empty if they are."""
        by_fit = [] if self.fit is None or self.fit.same else [self.fit.sentence(self.images)]
        if self.same:
            return by_fit
        differences = []
        if self.match:
            counts = f"{self.match.missing} detections are missing and {self.match.extra} are new"
            differences += [counts, f"worst in {self.worst['image']}"]
        if self.heads:
            differences.append(f"the raw heads differ by {max(self.heads.values()):.2g}")
        return [", ".join(differences), *by_fit]

    def __add__(self, other: "ParityReport") -> "ParityReport":
        """Return the report of both on other images."""
        worst = max(self.worst, other.worst, key=disagreement)
        both = [r.match for r in (self, other) if r.match is not None]
        return ParityReport(
            self.images + other.images,
            self.tolerances,
            sum(both, MatchReport()) if both else None,
            {name: max(self.heads[name], other.heads[name]) for name in self.heads},
            worst,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        why_not = {} if self.passed else {"reasons": self.reasons}
        return {"passed": self.passed, **why_not, **asdict(self)}


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
    exported, content = read_onnx_info(onnx_path)
    info = replace(info, input=exported.input)
    tolerances = tolerances or Tolerances()
    number, step = len(images.pixels), content["batch"]
    batches = [images.pixels[start : start + step] for start in range(0, number, step)]
    heads = raw_head_differences(model, onnx_path, batches)
    if content["tail"] == "none":
        return ParityReport(number, tolerances, None, heads, {})
    totals = MatchTotals(info.detector, tolerances)
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
    for name, value in differences.items():
        differences[name] = max(value, largest(a[name] - b[name]))


def compare_artifacts(
    a: Runner,
    b: Runner,
    images: Sequence[Path],
    *,
    tolerances: Tolerances | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Compare the detections of two artifacts in images, or their raw heads.

    The raw heads are compared if one of the two artifacts ends in them. Both get the same input; if
    they fit images in different ways, what each finds in its own way is compared as well.

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
    fitting = _common_fitting(a, b)
    tolerances = tolerances or Tolerances()
    raw = "none" in (a.tail, b.tail)
    totals, heads = MatchTotals(a.info.detector, tolerances), dict.fromkeys(RAW_HEADS, 0.0)
    for done, path in enumerate(images, start=1):
        image = open_image(path)
        fitted, factors = fitting(image)
        pixels = batch_of_one(fitted)
        if raw:
            _keep_largest(heads, a.heads(pixels), b.heads(pixels))
        else:
            (in_a,), (in_b,) = a.infer(pixels), b.infer(pixels)
            seen = (factors, *image.size)
            totals.add(str(path), in_a.without_padding(*seen), in_b.without_padding(*seen))
        progress(done, len(images))
    if raw:
        return ParityReport(len(images), tolerances, None, heads, {})
    fit = None if a.fitting == b.fitting else compare_fits(a, b, images)
    return ParityReport(len(images), tolerances, totals.total, {}, totals.worst, fit)


def _common_fitting(a: Runner, b: Runner) -> Fitting:
    """Return how images are fitted so that both take them.

    Raises:
        AdaptError: If classes or inputs of the two differ.
    """
    inputs_a, inputs_b = (r.fitting.canvases or r.fitting.resize.canvases() for r in (a, b))
    common = tuple(canvas for canvas in inputs_b if canvas in inputs_a)
    if a.info.classes != b.info.classes or not common:
        raise AdaptError(
            f"the two detectors differ: {_sizes(inputs_a)} with {len(a.info.classes)} classes, "
            f"{_sizes(inputs_b)} with {len(b.info.classes)}; compare artifacts of one detector"
        )
    if a.fitting == b.fitting:
        return a.fitting
    deployed = b if b.fitting.canvases else a
    return Fitting(deployed.fitting.resize, common)


def _sizes(canvases: Sequence[InputSize]) -> str:
    return " or ".join(f"{canvas.height}x{canvas.width}" for canvas in canvases)
