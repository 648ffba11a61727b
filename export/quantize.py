"""How does an fp32 detector become an int8 one? (calibrated on images)"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from adapt.progress import Progress, silent
from export.graph.onnx_file import load_onnx, read_description, save_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.graph.precision import LARGEST, conv_weights, with_qdq
from export.run.onnx_session import ort_session
from export.run.runner import Array

SENSITIVITY_BATCHES = 4


class Quantizer:
    """Writes int8 versions of one fp32 detector.

    Args:
        source: An fp32 detector that :func:`export.graph.detector.export_detector` wrote.
        images: Calibration batches as the file takes them, ``[B, 3, H, W]``.

    Raises:
        AdaptError: If the source is no exported detector.
    """

    def __init__(self, source: Path, images: Sequence[Array]) -> None:
        self._description = read_description(source, "onnx-detector")
        self._model = load_onnx(source)
        self._images = images
        self._scales = calibrate(source, images)

    def write(self, path: Path, kept: Sequence[str] = ()) -> Path:
        """Write the int8 version.

        Args:
            path: File to write.
            kept: Weights whose convolutions stay in fp32.

        Returns:
            ``path``.

        Raises:
            AdaptError: If the file cannot be written.
        """
        model = with_qdq(self._model, self._scales, kept)
        _store_weights_as_integers(model)
        described = {
            **self._description,
            "precision": "int8",
            "calibration_batches": len(self._images),
            "kept_in_fp32": list(kept),
        }
        return save_onnx(model, described, path)

    def most_sensitive(
        self, batches: int = SENSITIVITY_BATCHES, progress: Progress = silent
    ) -> list[str]:
        """Return the weights of all convolutions, those first that should not be quantised.

        Each is quantised alone, with the activations that it reads; what counts is how much that
        changes the raw heads, relative to how much these vary.

        Args:
            batches: Calibration batches to compare on.
            progress: Called with (done, total) after every weight.
        """
        exposed = with_outputs(self._model, RAW_HEADS)
        weights = conv_weights(exposed)
        expected = self._heads(exposed, batches)
        errors = {}
        for done, weight in enumerate(weights, start=1):
            others = [other for other in weights if other != weight]
            errors[weight] = _error(
                expected, self._heads(with_qdq(exposed, self._scales, others), batches)
            )
            progress(done, len(weights), weight)
        return sorted(weights, key=lambda weight: -errors[weight])

    def _heads(self, model: onnx.ModelProto, batches: int) -> list[list[Array]]:
        session = ort_session("ort-cpu", model.SerializeToString(), threads=1)
        return [session.run(RAW_HEADS, {"images": x}) for x in self._images[:batches]]


def _error(expected: list[list[Array]], found: list[list[Array]]) -> float:
    """Return the squared error of both heads, each relative to its own variance."""
    total = 0.0
    for a, b in zip(zip(*expected, strict=True), zip(*found, strict=True), strict=True):
        total += float(np.square(np.stack(a) - np.stack(b)).mean() / np.var(np.stack(a)))
    return total


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
