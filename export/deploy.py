"""What does `adapt export` do, from a trained detector to ONNX file, parity report and engine?"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.models.detection import RetinaNet

from adapt.artifacts import file_hash, make_folder, write_json
from adapt.data.coco import load_split
from adapt.data.images import InputSize, find_images, fit, open_image
from adapt.data.layout import has_split
from adapt.detector.file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Precision, Tail
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.installed import load_tensorrt
from export.graph.detector import export_detector, read_onnx_info
from export.graph.options import GraphOptions, ImageInput, Pixels
from export.quantize import Quantizer
from export.run.inference import Array, batch_of_one, in_type
from export.run.parity import NamedImages, ParityReport, Tolerances, verify_export

CALIBRATION_IMAGES = 64
VERIFY_IMAGES = 8


@dataclass(frozen=True)
class Deployment:
    """Which files to write for a detector, and how.

    Attributes:
        tail: How the graph ends; by default ``tensor-nms`` for an engine, ``onnx-nms`` without.
        precision: ``fp32``, ``fp16`` (what follows the heads stays fp32) or ``int8``.
        batch: Images per inference.
        dynamic: Whether fewer images, down to one, are accepted too.
        pixels: Type of the images, ``float32`` in [0, 1] or ``uint8``.
        nms_candidates: Candidates that reach non-maximum suppression; the detector's own by
            default.
        calibration: Images for int8 to calibrate on, folders of them, or data sets, whose train
            split is used. 64 of them, evenly spaced, are used.
        verify: Images or folders of them on which raw heads and detections are compared with those
            of the same graph in fp32 PyTorch; the result is written beside the ONNX file. 8 of
            them, evenly spaced, are used.
        engine: How to build a TensorRT engine; None builds none.

    Raises:
        AdaptError: If int8 has nothing to calibrate with.
    """

    tail: Tail | None = None
    precision: Precision = "fp32"
    batch: int = 1
    dynamic: bool = False
    pixels: Pixels = "float32"
    nms_candidates: int | None = None
    calibration: Sequence[Path] = ()
    verify: Sequence[Path] = ()
    engine: BuildOptions | None = None

    def __post_init__(self) -> None:
        if self.precision == "int8" and not self.calibration:
            raise AdaptError(
                "int8 needs images to calibrate on; pass a folder of training images or a data set "
                "with --calibration"
            )

    @property
    def graph(self) -> GraphOptions:
        """How the ONNX file is written; int8 is made from an fp32 file."""
        return GraphOptions(
            tail=self.tail or ("tensor-nms" if self.engine else "onnx-nms"),
            precision="fp16" if self.precision == "fp16" else "fp32",
            batch=self.batch,
            dynamic=self.dynamic,
            pixels=self.pixels,
        )

    @property
    def steps(self) -> int:
        """Number of files that are written and reported as progress: ONNX, parity, engine."""
        return 1 + bool(self.verify) + bool(self.engine)


def deploy(
    detector: Path, onnx_path: Path, deployment: Deployment, *, progress: Progress = silent
) -> dict[str, Any]:
    """Export a detector to ONNX; verify it and build a TensorRT engine from it if asked.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write; the engine gets the same name with ``.plan``.
        deployment: Which files to write, and how.
        progress: Called with (done, total) after every file.

    Returns:
        The files and what is known of them.

    Raises:
        AdaptError: If the detector or an image cannot be read, an fp32 export detects something
            else than PyTorch, or TensorRT is missing or refuses the network. Then nothing is
            written.
    """
    check_possible(deployment)
    with staged(onnx_path) as path:
        write_graph(detector, path, deployment)
        progress(1, deployment.steps)
        return finish(detector, path, deployment, onnx_path, progress=progress)


@contextmanager
def staged(onnx_path: Path) -> Iterator[Path]:
    """Yield a path in a temporary folder; its files move beside ``onnx_path`` if nothing fails."""
    make_folder(onnx_path.parent)
    with tempfile.TemporaryDirectory(dir=onnx_path.parent, prefix=".export-") as folder:
        yield Path(folder, onnx_path.name)
        for file in Path(folder).iterdir():
            file.replace(onnx_path.parent / file.name)


def write_graph(detector: Path, path: Path, deployment: Deployment) -> None:
    """Write the ONNX file of a deployment; int8 calibrated.

    Raises:
        AdaptError: If the detector or a calibration image cannot be read.
    """
    if deployment.precision == "int8":
        with quantizer(detector, deployment) as int8:
            int8.write(path)
    else:
        _write_float(detector, path, deployment)


@contextmanager
def quantizer(detector: Path, deployment: Deployment) -> Iterator[Quantizer]:
    """Calibrate a detector and yield what writes int8 files of it.

    Raises:
        AdaptError: If the detector or an image cannot be read.
    """
    size = load_detector(detector)[1].input.fixed()
    limit = max(CALIBRATION_IMAGES, deployment.batch)
    images = fitted_images(_training_images(deployment.calibration), size, limit)
    batches = [
        in_type(batch, deployment.pixels) for batch in _in_batches(images.pixels, deployment)
    ]
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder, "fp32.onnx")
        _write_float(detector, fp32, deployment)
        yield Quantizer(fp32, batches)


def _write_float(detector: Path, path: Path, deployment: Deployment) -> None:
    model, info = _load(detector, deployment)
    provenance = {"detector_sha256": file_hash(detector)}
    export_detector(model, info, path, deployment.graph, provenance=provenance)


def _load(detector: Path, deployment: Deployment) -> tuple[RetinaNet, DetectorInfo]:
    model, info = load_detector(detector)
    if deployment.nms_candidates:
        fewer = replace(info.detector, nms_candidates=deployment.nms_candidates)
        info = replace(info, detector=fewer)
    return model, info


def finish(
    detector: Path,
    path: Path,
    deployment: Deployment,
    onnx_path: Path,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Verify an ONNX file and build its engine, as far as the deployment has them.

    Args:
        detector: The detector file it was made from.
        path: Where the ONNX file is now; parity report and engine are written beside it.
        deployment: Which files to write, and how.
        onnx_path: Where the ONNX file will be.
        progress: Called with (done, total) after every file.

    Returns:
        The files and what is known of them.
    """
    info, content = read_onnx_info(path)
    summary: dict[str, Any] = {
        "onnx": str(onnx_path),
        "precision": content["precision"],
        "tail": content["tail"],
        "size_mb": path.stat().st_size / 1e6,
        "input": f"{content['pixels']} {ImageInput.of(info, content)}",
    }
    if deployment.verify:
        parity = {"onnx_sha256": file_hash(path), **_verify(detector, path, deployment).to_dict()}
        summary["parity"] = parity
        write_json(path.with_name(path.name + ".parity.json"), parity)
        progress(2, deployment.steps)
    if deployment.engine:
        plan = path.with_suffix(".plan")
        report = build_engine(path, plan, deployment.engine, name=str(onnx_path))
        summary |= {"engine": str(onnx_path.with_suffix(".plan")), **report.to_dict()}
        progress(deployment.steps, deployment.steps)
    return summary


def check_possible(deployment: Deployment) -> None:
    """Check before the work that the engine fits the graph and that its TensorRT is installed.

    Raises:
        AdaptError: If not, or if that TensorRT lacks an operator of the graph.
    """
    graph = deployment.graph
    if deployment.engine is None:
        return
    tuned = deployment.engine.tuned_batch
    if tuned and not (graph.dynamic and tuned <= graph.batch):
        raise AdaptError(
            f"an engine tuned for {tuned} images must take a dynamic batch; pass --dynamic and "
            f"--batch {max(tuned, 2)} or more"
        )
    trt = load_tensorrt(deployment.engine.flavour)
    if graph.tail == "onnx-nms" and trt.__name__ == "tensorrt_rtx":
        raise AdaptError(
            "TensorRT-RTX has no NonMaxSuppression; export with --tail tensor-nms for it"
        )


def _training_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images of the train splits of data sets, and those of other folders and files."""
    images: list[Path] = []
    for path in paths:
        if has_split(path, "train"):
            # Boxes play no role in calibration.
            images += [image.path for image in load_split(path, "train", repair=True).images]
        else:
            images += find_images([path])
    return images


def fitted_images(paths: Sequence[Path], size: InputSize, limit: int) -> NamedImages:
    """Read images, at most ``limit`` and evenly spaced, and fit them to a detector's input.

    Raises:
        AdaptError: If one cannot be read.
    """
    number = min(limit, len(paths))
    chosen = [paths[round(i * (len(paths) - 1) / max(number - 1, 1))] for i in range(number)]
    pixels = [batch_of_one(fit(open_image(path), size)[0]) for path in chosen]
    return NamedImages(np.concatenate(pixels), [str(path) for path in chosen])


def _in_batches(images: Array, deployment: Deployment) -> list[Array]:
    """Split images into batches; a last one that is not full is left out of a fixed batch."""
    size = deployment.batch
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    accepted = [batch for batch in batches if deployment.dynamic or len(batch) == size]
    if not accepted:
        raise AdaptError(f"{len(images)} images do not fill a batch of {size}; pass more")
    return accepted


def _verify(detector: Path, path: Path, deployment: Deployment) -> ParityReport:
    """Compare an ONNX file with PyTorch.

    Raises:
        AdaptError: If an fp32 export does not compute the same.
    """
    model, info = _load(detector, deployment)
    limit = max(VERIFY_IMAGES, deployment.batch)
    images = fitted_images(find_images(deployment.verify), info.input.fixed(), limit)
    in_batches = sum(map(len, _in_batches(images.pixels, deployment)))
    report = verify_export(
        model,
        info,
        path,
        NamedImages(images.pixels[:in_batches], images.names[:in_batches]),
        tolerances=Tolerances.of(deployment.precision),
        same_candidates=True,
    )
    # Lower precisions differ as they must; how much is in the report.
    if deployment.precision == "fp32" and not report.passed:
        match = report.match
        counts = f"{match.missing} detections are missing and {match.extra} new, " if match else ""
        raise AdaptError(
            f"{path.name} does not compute what PyTorch computes: {counts}the raw heads differ by "
            f"{max(report.heads.values()):.2g}, worst in {report.worst.get('image', 'all')}; "
            "report this with the versions that `adapt doctor` prints"
        )
    return report
