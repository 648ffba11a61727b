"""How is an exported detector quantised to int8: scales from images, sensitive layers left out?"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from adapt.progress import Progress, silent
from adapt.runtime import Int8For
from export.graph.onnx_file import load_onnx, read_description, save_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.graph.precision import LARGEST, conv_weights, convolutions, with_qdq
from export.graph.zero_points import OPERATORS, Ranges, calibrated_ranges, with_zero_points
from export.run.inference import Array
from export.run.onnx_session import ort_session

SENSITIVITY_BATCHES = 4


class Quantizer:
    """Calibrates an fp32 ONNX file once and writes int8 versions of it.

    Args:
        source: An fp32 file that :func:`export.graph.detector.export_detector` wrote.
        images: Calibration batches ``[B, 3, H, W]`` in shape and type of the file's input.
        half: The same detector in fp16, to stay so where it is not quantised; else that is fp32.
        library: Whose integer kernels compute it; with ``half`` it must be TensorRT.

    Raises:
        AdaptError: If the source is no exported detector.
    """

    def __init__(
        self,
        source: Path,
        images: Sequence[Array],
        half: Path | None = None,
        library: Int8For = "tensorrt",
    ) -> None:
        assert half is None or library == "tensorrt", library
        self._description = read_description(source, "onnx-detector")
        self._source, self._images, self._library = load_onnx(source), images, library
        operators = OPERATORS if library == "ort-cpu" else ("Conv",)
        self._ranges = calibrate(source, images, operators)
        self._scales = symmetric_scales(self._ranges)
        self._half = None if half is None else load_onnx(half)

    def write(self, path: Path, kept: Sequence[str] = ()) -> Path:
        """Write an int8 version.

        Args:
            path: File to write.
            kept: Weights whose convolutions are not quantised.

        Returns:
            ``path``.

        Raises:
            AdaptError: If the file cannot be written.
        """
        if self._half is None:
            model = self._quantised(self._source, kept)
        else:
            model = with_qdq(self._half, self._scales_of(self._half), kept)
        _store_weights_as_integers(model)
        described = {
            **self._description,
            "precision": "int8",
            "int8_for": self._library,
            "rest": "fp32" if self._half is None else "fp16",
            "calibration_batches": len(self._images),
            "kept_in_fp32": list(kept),
        }
        return save_onnx(model, described, path)

    def _quantised(
        self, model: onnx.ModelProto, kept: Sequence[str], *, between: bool = True
    ) -> onnx.ModelProto:
        """Return the fp32 graph, or one with other outputs, with all but ``kept`` in int8."""
        if self._library == "ort-cpu":
            return with_zero_points(model, self._ranges, kept, between=between)
        return with_qdq(model, self._scales, kept)

    def _scales_of(self, half: onnx.ModelProto) -> dict[str, float]:
        """Return the scales by the tensors that the same convolutions read in the fp16 file."""
        scales = {}
        pairs = zip(convolutions(self._source.graph), convolutions(half.graph), strict=True)
        for of_source, of_half in pairs:  # the heads use the same weights at every level
            assert of_source.input[1] == of_half.input[1], (of_source.name, of_half.name)
            scales[of_half.input[0]] = self._scales[of_source.input[0]]
        return scales

    def most_sensitive(
        self, batches: int = SENSITIVITY_BATCHES, progress: Progress = silent
    ) -> list[str]:
        """Return the weights of all convolutions, the most sensitive to quantisation first.

        Each convolution is quantised alone, weights and input. Its sensitivity is the error of the
        raw heads that this causes, relative to their variance.

        Args:
            batches: Number of calibration batches to compare on.
            progress: Called with (done, total) after every weight.
        """
        exposed = with_outputs(self._source, RAW_HEADS)
        weights = conv_weights(exposed)
        expected = self._heads(exposed, batches)
        errors = {}
        for done, weight in enumerate(weights, start=1):
            others = [other for other in weights if other != weight]
            alone = self._quantised(exposed, others, between=False)
            errors[weight] = _error(expected, self._heads(alone, batches))
            progress(done, len(weights), weight)
        return sorted(weights, key=lambda weight: -errors[weight])

    def _heads(self, model: onnx.ModelProto, batches: int) -> list[list[Array]]:
        session = ort_session("ort-cpu", model.SerializeToString(), threads=1)
        return [session.run(RAW_HEADS, {"images": x}) for x in self._images[:batches]]


def _error(expected: list[list[Array]], quantised: list[list[Array]]) -> float:
    """Return the sum over both heads of squared error by variance; a list is a batch's heads."""
    total = 0.0
    for a, b in zip(zip(*expected, strict=True), zip(*quantised, strict=True), strict=True):
        total += float(np.square(np.stack(a) - np.stack(b)).mean() / np.var(np.stack(a)))
    return total


def _store_weights_as_integers(model: onnx.ModelProto) -> None:
    """Replace the QuantizeLinear of every weight by its result, a quarter of the bytes."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight_quantisers = [
        n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants
    ]
    for node in weight_quantisers:
        weight, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
        by_channel = scale.reshape(-1, *[1] * (weight.ndim - 1))
        # In fp32: a quotient in fp16 would be rounded twice.
        exact = weight.astype(np.float32) / by_channel.astype(np.float32)
        integers = np.clip(np.round(exact), -LARGEST, LARGEST).astype(np.int8)
        constants[node.input[0]].CopyFrom(numpy_helper.from_array(integers, node.output[0]))
        model.graph.node.remove(node)


def symmetric_scales(ranges: Ranges) -> dict[str, float]:
    """Return the scale of every tensor, the value that one step of int8 stands for.

    The range of int8 is symmetric and holds the largest value that occurs in any of the images.

    Args:
        ranges: Smallest and largest value of every tensor.
    """
    # A tensor that is always 0 gets some scale: dividing by 0 would give NaN.
    return {name: max(map(abs, both)) / LARGEST or 1.0 for name, both in ranges.items()}


def calibrate(source: Path, images: Sequence[Array], operators: Sequence[str]) -> Ranges:
    """Return the smallest and the largest value of every tensor that operators read or write.

    Args:
        source: An fp32 ONNX file.
        images: Calibration batches ``[B, 3, H, W]``.
        operators: Their types.
    """
    from onnxruntime.quantization.calibrate import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Gives ONNX Runtime one batch after the other."""

        batches = iter(images)

        def get_next(self) -> dict[str, Array] | None:
            """Called by ONNX Runtime."""
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder, "augmented.onnx"))
        calibrator = create_calibrator(source, list(operators), augmented)
        calibrator.collect_data(Reader())
        return calibrated_ranges(calibrator.compute_data())
