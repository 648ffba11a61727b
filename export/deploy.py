"""Which files does a trained detector become for deployment?"""

from pathlib import Path
from typing import Any

from adapt.artifacts import file_hash
from adapt.detector_file import load_detector
from adapt.progress import Progress, silent
from export.engine import build_engine
from export.graph import Tail, export_detector


def deploy(
    detector: Path, onnx_path: Path, *, tail: Tail, trt: bool, progress: Progress = silent
) -> dict[str, Any]:
    """Export a detector to ONNX, and build a TensorRT engine from it if asked.

    Args:
        detector: File that ``adapt finetune`` wrote.
        onnx_path: ONNX file to write; the engine gets the same name with ``.plan``.
        tail: ``tensor-nms`` or ``none``.
        trt: Whether to build the engine.
        progress: Told after every file.

    Returns:
        The files and what is known of them.

    Raises:
        AdaptError: If the detector cannot be read, or TensorRT is missing or refuses the network.
    """
    model, info = load_detector(detector)
    provenance = {"detector_sha256": file_hash(detector)}
    export_detector(model, info, onnx_path, tail=tail, provenance=provenance)
    progress(1, 1 + trt)
    summary: dict[str, Any] = {
        "onnx": str(onnx_path),
        "size_mb": onnx_path.stat().st_size / 1e6,
        "input": f"1x3x{info.input.fixed().height}x{info.input.fixed().width}",
    }
    if trt:
        plan = onnx_path.with_suffix(".plan")
        report = build_engine(onnx_path, plan)
        progress(2, 2)
        summary |= {"engine": str(plan), **report.to_dict()}
    return summary
