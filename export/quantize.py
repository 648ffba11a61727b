"""How does an fp32 detector become an int8 one? (calibrated on images)"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from export.onnx_file import load_onnx, read_description, save_onnx
from export.precision import LARGEST, with_qdq
from export.runner import Array


def quantize(source: Path, images: Sequence[Array], path: Path) -> Path:
    """Write the int8 version of an fp32 detector.

    Args:
        source: An fp32 detector that :func:`export.graph.export_detector` wrote.
        images: Calibration batches, float32 ``[B, 3, H, W]`` in [0, 1], fitted to its input.
        path: File to write.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the source is no exported detector or the file cannot be written.
    """
    description = read_description(source, "onnx-detector")
    model = with_qdq(load_onnx(source), calibrate(source, images))
    _store_weights_as_integers(model)
    described = {**description, "precision": "int8", "calibration_batches": len(images)}
    return save_onnx(model, described, path)


def _store_weights_as_integers(model: onnx.ModelProto) -> None:
    """Do now what the QuantizeLinear of every weight would do when the file is loaded."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants
    ]
    for node in pairs:
        weight, step = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
        steps = step.reshape(-1, *[1] * (weight.ndim - 1))
        integers = np.clip(np.round(weight / steps), -LARGEST, LARGEST).astype(np.int8)
        constants[node.input[0]].CopyFrom(numpy_helper.from_array(integers, node.output[0]))
        model.graph.node.remove(node)


def calibrate(source: Path, images: Sequence[Array]) -> dict[str, float]:
    """Return what one step of int8 is worth, for every tensor that a convolution reads or writes.

    The range is symmetric and holds the largest value that any of the images leads to.

    Args:
        source: An fp32 detector.
        images: Calibration batches.
    """
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Feeds one batch after the other."""

        left = iter(images)

        def get_next(self) -> dict[str, Array] | None:
            """Called by ONNX Runtime."""
            batch = next(self.left, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder, "augmented.onnx"))
        calibrator = create_calibrator(source, ["Conv"], augmented)
        calibrator.collect_data(Reader())
        ranges: Any = calibrator.compute_data()
    largest = {name: float(np.abs(ranges[name].range_value).max()) for name in ranges.keys()}  # noqa: SIM118
    return {name: value / LARGEST or 1.0 for name, value in largest.items()}
