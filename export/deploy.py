"""Which files does a trained detector become for deployment?"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.models.detection import RetinaNet

from adapt.artifacts import file_hash, write_json
from adapt.detector_file import DetectorInfo, load_detector
from adapt.errors import AdaptError
from adapt.images import InputSize, find_images, fit, open_image
from adapt.progress import Progress, silent
from adapt.runtime import Precision
from export.engine import build_engine
from export.graph import Tail, export_detector
from export.parity import verify_export
from export.quantize import quantize
from export.runner import Array, batch_of_one

CALIBRATION_IMAGES = 64
VERIFY_IMAGES = 8
# Largest difference of scores, and of box coordinates in pixels, that --verify lets pass.
TOLERANCES = {"fp32": (1e-4, 0.05), "fp16": (0.01, 1.0), "int8": (0.1, 8.0)}


def deploy(
    detector: Path,
    onnx_path: Path,
    *,
    tail: Tail,
    trt: bool,
    precision: Precision = "fp32",
    batch: int = 1,
    calibration: Sequence[Path] = (),
    verify: Sequence[Path] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Export a detector to ONNX, and build a TensorRT engine from it if asked.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write; the engine gets the same name with ``.plan``.
        tail: ``tensor-nms`` or ``none``.
        trt: Whether to build the engine.
        precision: ``fp32``, ``fp16`` (what follows the heads stays fp32) or ``int8``.
        batch: Images per inference.
        calibration: Images or folders of them, which int8 needs; the first 64, evenly spaced,
            are used.
        verify: Images or folders of them on which detections are compared with those of the same
            graph in fp32 PyTorch; the result is written beside the file.
        progress: Told after every file.

    Returns:
        The files and what is known of them.

    Raises:
        AdaptError: If the detector or an image cannot be read, int8 has nothing to calibrate with,
            or TensorRT is missing or refuses the network.
    """
    model, info = load_detector(detector)
    size = info.input.fixed()
    if precision == "int8" and not calibration:
        raise AdaptError(
            "int8 needs images to calibrate on; pass a folder of training images with --calibration"
        )
    if verify and tail == "none":
        raise AdaptError("--verify compares detections, tail 'none' has none; verify 'tensor-nms'")
    batches = _batches(calibration, size, batch, CALIBRATION_IMAGES) if calibration else []
    provenance = {"detector_sha256": file_hash(detector)}
    options: dict[str, Any] = {"tail": tail, "batch": batch, "provenance": provenance}
    if precision == "int8":
        with tempfile.TemporaryDirectory() as folder:
            fp32 = export_detector(model, info, Path(folder, "fp32.onnx"), **options)
            quantize(fp32, batches, onnx_path)
    else:
        export_detector(model, info, onnx_path, precision=precision, **options)
    steps = 1 + bool(verify) + trt
    progress(1, steps)
    summary: dict[str, Any] = {
        "onnx": str(onnx_path),
        "precision": precision,
        "size_mb": onnx_path.stat().st_size / 1e6,
        "input": f"{batch}x3x{size.height}x{size.width}",
    }
    if verify:
        images = _batches(verify, size, batch, VERIFY_IMAGES)
        summary["parity"] = _verify(model, info, onnx_path, images, precision)
        progress(2, steps)
    if trt:
        plan = onnx_path.with_suffix(".plan")
        report = build_engine(onnx_path, plan)
        progress(steps, steps)
        summary |= {"engine": str(plan), **report.to_dict()}
    return summary


def _batches(paths: Sequence[Path], size: InputSize, batch: int, most: int) -> list[Array]:
    """Return evenly spaced images as float32 ``[batch, 3, H, W]`` in [0, 1]."""
    found = find_images(paths)
    if len(found) < batch:
        raise AdaptError(f"{len(found)} images do not fill a batch of {batch}; pass more")
    number = min(most, len(found)) // batch * batch or batch
    chosen = [found[round(i * (len(found) - 1) / max(number - 1, 1))] for i in range(number)]
    pixels = [batch_of_one(fit(open_image(path), size)[0]) for path in chosen]
    return [np.concatenate(pixels[i : i + batch]) for i in range(0, number, batch)]


def _verify(
    model: RetinaNet, info: DetectorInfo, path: Path, images: list[Array], precision: Precision
) -> dict[str, Any]:
    score_tol, box_tol = TOLERANCES[precision]
    report = verify_export(
        model,
        info,
        path,
        np.concatenate(images),
        score_tol=score_tol,
        box_tol=box_tol,
        same_candidates=True,
    )
    parity = path.with_name(path.name + ".parity.json")
    write_json(parity, report.to_dict())
    found = report.match
    if precision == "fp32" and not found.same:
        raise AdaptError(
            f"{path} does not detect what PyTorch detects: of {found.matched + found.missing} "
            f"detections {found.missing} are missing and {found.extra} are new, see {parity.name}; "
            "report this with the versions that `adapt doctor` prints"
        )
    return report.to_dict()
