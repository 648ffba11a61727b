"""Which files does a trained detector become for deployment?"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.models.detection import RetinaNet

from adapt.artifacts import file_hash, make_folder, write_json
from adapt.data.coco import has_split, load_split
from adapt.data.images import InputSize, find_images, fit, open_image
from adapt.detector.file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from adapt.runtime import Precision, Tail
from export.engine.build import build_engine, load_tensorrt
from export.engine.builder import BuildOptions
from export.graph.detector import export_detector, read_onnx_info
from export.graph.options import GraphOptions, ImageInput, Pixels
from export.quantize import Quantizer
from export.run.parity import ParityReport, Tolerances, verify_export
from export.run.runner import Array, batch_of_one, in_type

CALIBRATION_IMAGES = 64
VERIFY_IMAGES = 8


@dataclass(frozen=True)
class Deployment:
    """What to make of a detector.

    Attributes:
        tail: How the graph ends; by default ``tensor-nms`` for an engine, ``onnx-nms`` without.
        precision: ``fp32``, ``fp16`` (what follows the heads stays fp32) or ``int8``.
        batch: Images per inference.
        dynamic: Whether it may also be fewer, down to one.
        pixels: Type of the images, ``float32`` in [0, 1] or ``uint8``.
        nms_candidates: Candidates that reach non-maximum suppression; the detector's own by
            default.
        calibration: Images, folders of them, or data sets, whose train split is used; int8 needs
            them. 64 of them, evenly spaced, are used.
        verify: Images or folders of them on which raw heads and detections are compared with those
            of the same graph in fp32 PyTorch; the result is written beside the file.
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


def deploy(
    detector: Path, onnx_path: Path, wanted: Deployment, *, progress: Progress = silent
) -> dict[str, Any]:
    """Export a detector to ONNX, and build a TensorRT engine from it if asked.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write; the engine gets the same name with ``.plan``.
        wanted: What to write.
        progress: Told after every file.

    Returns:
        The files and what is known of them.

    Raises:
        AdaptError: If the detector or an image cannot be read, an fp32 export detects something
            else than PyTorch, or TensorRT is missing or refuses the network. Then nothing is
            written.
    """
    check_possible(wanted)
    with staged(onnx_path) as path:
        steps = 1 + bool(wanted.verify) + bool(wanted.engine)
        write_graph(detector, path, wanted)
        progress(1, steps)
        return finish(detector, path, wanted, onnx_path, progress=progress)


@contextmanager
def staged(onnx_path: Path) -> Iterator[Path]:
    """Yield where to write an ONNX file and those beside it; they appear when all are complete."""
    make_folder(onnx_path.parent)
    with tempfile.TemporaryDirectory(dir=onnx_path.parent, prefix=".export-") as folder:
        yield Path(folder, onnx_path.name)
        for file in Path(folder).iterdir():
            file.replace(onnx_path.parent / file.name)


def write_graph(detector: Path, path: Path, wanted: Deployment) -> None:
    """Write the ONNX file.

    Raises:
        AdaptError: If the detector or a calibration image cannot be read.
    """
    if wanted.precision == "int8":
        with quantizer(detector, wanted) as int8:
            int8.write(path)
    else:
        _write_float(detector, path, wanted)


@contextmanager
def quantizer(detector: Path, wanted: Deployment) -> Iterator[Quantizer]:
    """Yield what writes int8 files of a detector, calibrated.

    Raises:
        AdaptError: If the detector or an image cannot be read.
    """
    size = load_detector(detector)[1].input.fixed()
    most = max(CALIBRATION_IMAGES, wanted.batch)
    pixels, _ = fitted_images(_training_images(wanted.calibration), size, most)
    batches = [in_type(batch, wanted.pixels) for batch in _in_batches(pixels, wanted)]
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder, "fp32.onnx")
        _write_float(detector, fp32, wanted)
        yield Quantizer(fp32, batches)


def _write_float(detector: Path, path: Path, wanted: Deployment) -> None:
    model, info = _load(detector, wanted)
    provenance = {"detector_sha256": file_hash(detector)}
    export_detector(model, info, path, wanted.graph, provenance=provenance)


def _load(detector: Path, wanted: Deployment) -> tuple[RetinaNet, DetectorInfo]:
    model, info = load_detector(detector)
    if wanted.nms_candidates:
        fewer = replace(info.detector, nms_candidates=wanted.nms_candidates)
        info = replace(info, detector=fewer)
    return model, info


def finish(
    detector: Path,
    path: Path,
    wanted: Deployment,
    onnx_path: Path,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Verify an ONNX file and build its engine, as asked.

    Args:
        detector: The detector it was made from.
        path: Where the file is; the others are written beside it.
        wanted: What to do.
        onnx_path: Where it will be.
        progress: Told after every file.

    Returns:
        The files and what is known of them.
    """
    steps = 1 + bool(wanted.verify) + bool(wanted.engine)
    info, content = read_onnx_info(path)
    summary: dict[str, Any] = {
        "onnx": str(onnx_path),
        "precision": content["precision"],
        "tail": content["tail"],
        "size_mb": path.stat().st_size / 1e6,
        "input": f"{content['pixels']} {ImageInput.of(info, content)}",
    }
    if wanted.verify:
        parity = {"onnx_sha256": file_hash(path), **_verify(detector, path, wanted).to_dict()}
        summary["parity"] = parity
        write_json(path.with_name(path.name + ".parity.json"), parity)
        progress(2, steps)
    if wanted.engine:
        plan = path.with_suffix(".plan")
        report = build_engine(path, plan, wanted.engine, name=str(onnx_path))
        summary |= {"engine": str(onnx_path.with_suffix(".plan")), **report.to_dict()}
        progress(steps, steps)
    return summary


def check_possible(wanted: Deployment) -> None:
    """Check before the work that all values fit, and that TensorRT is there and has a chance.

    Raises:
        AdaptError: If it is not installed, or lacks what the graph needs.
    """
    graph = wanted.graph
    if wanted.engine is None:
        return
    tuned = wanted.engine.tuned_batch
    if tuned and not (graph.dynamic and tuned <= graph.batch):
        raise AdaptError(
            f"an engine tuned for {tuned} images must take a dynamic batch; pass --dynamic and "
            f"--batch {max(tuned, 2)} or more"
        )
    trt = load_tensorrt(wanted.engine.flavour)
    if graph.tail == "onnx-nms" and trt.__name__ == "tensorrt_rtx":
        raise AdaptError(
            "TensorRT-RTX has no NonMaxSuppression; export with --tail tensor-nms for it"
        )


def _training_images(paths: Sequence[Path]) -> list[Path]:
    """Return the images of the train splits of data sets, and those of other folders and files."""
    found: list[Path] = []
    for path in paths:
        if has_split(path, "train"):
            found += [image.path for image in load_split(path, "train").images]
        else:
            found += find_images([path])
    return found


def fitted_images(paths: Sequence[Path], size: InputSize, most: int) -> tuple[Array, list[str]]:
    """Return evenly spaced images as uint8 ``[N, 3, H, W]``, and their files.

    Raises:
        AdaptError: If one cannot be read.
    """
    number = min(most, len(paths))
    chosen = [paths[round(i * (len(paths) - 1) / max(number - 1, 1))] for i in range(number)]
    pixels = [batch_of_one(fit(open_image(path), size)[0]) for path in chosen]
    return np.concatenate(pixels), [str(path) for path in chosen]


def _in_batches(images: Array, wanted: Deployment) -> list[Array]:
    """Split images into batches; what does not fill one is left out unless it may be smaller."""
    batch = wanted.batch
    batches = [images[start : start + batch] for start in range(0, len(images), batch)]
    whole = [images for images in batches if wanted.dynamic or len(images) == batch]
    if not whole:
        raise AdaptError(f"{len(images)} images do not fill a batch of {batch}; pass more")
    return whole


def _verify(detector: Path, path: Path, wanted: Deployment) -> ParityReport:
    """Compare with PyTorch.

    Raises:
        AdaptError: If an fp32 export is not the same.
    """
    model, info = _load(detector, wanted)
    most = max(VERIFY_IMAGES, wanted.batch)
    images, names = fitted_images(find_images(wanted.verify), info.input.fixed(), most)
    whole = sum(map(len, _in_batches(images, wanted)))
    report = verify_export(
        model,
        info,
        path,
        images[:whole],
        names=names[:whole],
        tolerances=Tolerances.of(wanted.precision),
        same_candidates=True,
    )
    if wanted.precision == "fp32" and not report.passed:
        found = report.match
        told = f"{found.missing} detections are missing and {found.extra} new, " if found else ""
        raise AdaptError(
            f"{path.name} does not compute what PyTorch computes: {told}the raw heads differ by "
            f"{max(report.heads.values()):.2g}, worst in {report.worst.get('image', 'all')}; "
            "report this with the versions that `adapt doctor` prints"
        )
    return report
