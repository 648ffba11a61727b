"""Is a deployed detector as good as the one it was made from?"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapt.coco import CocoSplit, load_split
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.measure import evaluate_artifact
from export.deploy import deploy


@dataclass(frozen=True)
class GateReport:
    """AP of a deployed detector against fp32 PyTorch on the same images, in percent.

    Attributes:
        ap_torch: AP of the detector by torchvision's own inference.
        ap_artifact: AP of the deployed file.
        drop: How much lower it is; negative if it is higher.
        images: Evaluated images.
    """

    ap_torch: float
    ap_artifact: float
    drop: float
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def check_ap(
    detector: Path,
    artifact: Path,
    split: CocoSplit,
    gate: float,
    *,
    runtime: str | None = None,
    progress: Progress = silent,
) -> GateReport:
    """Compare the AP of a deployed detector with that of its source.

    Args:
        detector: File that ``adapt finetune`` wrote.
        artifact: What ``adapt export`` made of it.
        split: Images and boxes to evaluate on.
        gate: Largest drop of AP, in points of 100.
        runtime: Runtime of the artifact; the file's usual one if None.
        progress: Called with (done, total) images of both.

    Raises:
        AdaptError: If AP drops by more.
    """
    total, done = 2 * len(split), 0

    def step(*_: object) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    by_torch = 100 * evaluate_artifact(detector, split, progress=step).ap
    by_artifact = 100 * evaluate_artifact(artifact, split, runtime, progress=step).ap
    report = GateReport(by_torch, by_artifact, by_torch - by_artifact, len(split))
    if report.drop > gate:
        raise AdaptError(
            f"AP drops by {report.drop:.2f} points, from {by_torch:.2f} (fp32 PyTorch) to "
            f"{by_artifact:.2f} ({artifact.name}) on {len(split)} images of {split.annotations}, "
            f"more than --ap-gate {gate:g}; export in a higher precision, or calibrate on more "
            "images like these"
        )
    return report


def deploy_within(
    detector: Path,
    onnx_path: Path,
    *,
    gate: float | None,
    data: Path | None,
    split: str = "val",
    progress: Progress = silent,
    **options: Any,
) -> dict[str, Any]:
    """Export a detector, and keep the files only if AP does not drop by more than a gate.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write.
        gate: Largest drop of AP in points of 100; None does not evaluate.
        data: Folder of the data set to evaluate on.
        split: Its split.
        progress: Told after every file and image.
        options: See :func:`export.deploy.deploy`.

    Returns:
        What :func:`export.deploy.deploy` returns, and the gate's report.

    Raises:
        AdaptError: If AP drops by more; then ``onnx_path`` is left as it was.
    """
    if gate is None:
        return deploy(detector, onnx_path, progress=progress, **options)
    if data is None:
        raise AdaptError("--ap-gate evaluates on images with boxes; pass a data set with --data")
    if options["tail"] == "none" or options["batch"] != 1:
        raise AdaptError(
            "--ap-gate evaluates detections of single images; use a tail with NMS and batch 1"
        )
    loaded = load_split(data, split)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, onnx_path.name)
        deploy(detector, trial, **{**options, "trt": False, "verify": ()})
        report = check_ap(detector, trial, loaded, gate, progress=progress)
    # The same bytes again: exporting is deterministic.
    return {**deploy(detector, onnx_path, **options), "ap_gate": report.to_dict()}
