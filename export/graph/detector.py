"""What does a deployed graph compute, from images to detections, and how is it exported?"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.artifacts import header, parsing, typed
from adapt.detector.file import DetectorInfo
from adapt.errors import AdaptError
from adapt.runtime import Precision, Tail
from export.graph.canvas import Canvas, alone
from export.graph.onnx_file import GraphSignature, fused, read_description, write_onnx
from export.graph.options import (
    RAW_HEADS,
    GraphOptions,
    ImageInput,
    Pixels,
)
from export.graph.postprocess import Outputs, run_heads
from export.graph.precision import FloatPrecision
from export.graph.two_stage import check_graph, postprocess_of


class DeployedDetector(nn.Module):
    """Images to detections: what an export with tail ``tensor-nms`` or ``onnx-nms`` computes."""

    def __init__(
        self,
        model: RetinaNet,
        info: DetectorInfo,
        tail: Tail = "tensor-nms",
        pixels: Pixels = "float32",
    ) -> None:
        super().__init__()
        self.features = Features(model, pixels)
        self.postprocess = postprocess_of(model, info.detector, info.input.fixed(), tail)

    def forward(self, images: Tensor) -> Outputs:
        """Return ``num_detections, boxes, scores, classes``.

        See :class:`export.graph.postprocess.Postprocess`.

        Args:
            images: ``Tensor[B, 3, H, W]``, float32 in [0, 1] or uint8, fitted to the input as
                :func:`adapt.data.images.fit` does it.
        """
        detections: Outputs = self.postprocess(self.features(images))
        return detections


class _TracedDetector(DeployedDetector):
    """Also returns the raw heads, which become inner tensors of the graph with names."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the four tensors of detections, logits and box deltas."""
        pyramid = self.features(images)
        heads = self.postprocess.heads(pyramid)
        return (*self.postprocess.detect(pyramid, *heads), *heads)


class RawHeads(nn.Module):
    """Images to logits and box deltas: what an export with tail ``none`` computes."""

    def __init__(self, model: RetinaNet, pixels: Pixels = "float32") -> None:
        super().__init__()
        self.features = Features(model, pixels)
        self.head = model.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``Tensor[B, A, K]`` and deltas ``Tensor[B, A, 4]``, finest level first."""
        return run_heads(self.head, self.features(images))


class Features(nn.Module):
    """Images to the pyramid, the normalisation of the images included.

    Images are normalised in float32; backbone and pyramid have the precision of the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: RetinaNet, pixels: Pixels = "float32") -> None:
        super().__init__()
        self.backbone = model.backbone
        self.dtype = next(model.backbone.parameters()).dtype
        white = 255.0 if pixels == "uint8" else 1.0
        for name, values in (
            ("mean", model.transform.image_mean),
            ("std", model.transform.image_std),
        ):
            scaled = white * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return a feature map ``Tensor[B, C, h, w]`` per level."""
        normalised = (images.float() - self.mean) / self.std
        return list(self.backbone(normalised.to(self.dtype)).values())


def export_detector(
    model: RetinaNet,
    info: DetectorInfo,
    path: Path,
    options: GraphOptions | None = None,
    *,
    provenance: Mapping[str, Any],
    canvas: Canvas | None = None,
) -> Path:
    """Write a detector as an ONNX file.

    Inputs and outputs are never float16, whatever the precision. In a graph that ends in
    detections, the raw heads are inner tensors with the names :data:`RAW_HEADS`.

    Args:
        model: The detector; it is left unchanged.
        info: Its description.
        path: File to write.
        options: By default one float32 image to detections, in fp32.
        provenance: JSON content that says where the weights come from.
        canvas: The graph's input; by default the one for all images, or for landscape ones.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written, or this detector has no graph with this tail.
    """
    options = options or GraphOptions()
    check_graph(info.detector, options.tail)
    canvas = canvas or alone(info.input)
    info = replace(info, input=canvas.size)
    description = header(
        "onnx-detector",
        **info.to_dict(),
        **canvas.to_dict(),
        **options.to_dict(),
        architecture_hash=info.architecture.hash,
        provenance=dict(provenance),
    )
    dtype = torch.uint8 if options.pixels == "uint8" else torch.float32
    images = torch.zeros(options.batch, 3, info.input.height, info.input.width, dtype=dtype)
    signature = GraphSignature(
        inputs={"images": images},
        outputs=options.outputs,
        inner=() if options.tail == "none" else RAW_HEADS,
        max_batch=options.batch if options.dynamic else None,
    )
    return write_onnx(
        _traced_module(model, info, options), signature, description, path, options.opset
    )


def _traced_module(model: RetinaNet, info: DetectorInfo, options: GraphOptions) -> nn.Module:
    model = in_precision(model, options.precision)
    if options.tail == "none":
        return RawHeads(model, options.pixels)
    return _TracedDetector(model, info, options.tail, options.pixels)


def in_precision(model: RetinaNet, precision: FloatPrecision) -> RetinaNet:
    """Return the model itself, or for fp16 a copy in half precision."""
    # BatchNorms are folded before the weights are rounded, not after.
    return fused(model).half() if precision == "fp16" else model


def checked_header(content: dict[str, Any], path: Path) -> DetectorInfo:
    """Check the description of an exported detector, and return the detector.

    Raises:
        AdaptError: If a field is missing or wrong.
    """
    with parsing("the description of", path, "export it again"):
        info = DetectorInfo.from_dict(content)
        _ = Canvas.of(content), ImageInput.of(info, content)
        _ = typed(Tail, content["tail"]), typed(Precision, content["precision"])
    return info


def read_onnx_info(path: Path) -> tuple[DetectorInfo, dict[str, Any]]:
    """Read the description of an exported detector.

    Returns:
        The description, and the file's whole header (precision, tail and provenance included).

    Raises:
        AdaptError: If the file is missing, truncated, or not written by ``adapt export``.
    """
    content = read_description(path, "onnx-detector")
    absent = {field.name for field in fields(GraphOptions)} - content.keys()
    if absent:
        raise AdaptError(
            f"{path} was exported by an older adapt (it does not say its {', '.join(absent)}); "
            "export it again"
        )
    return checked_header(content, path), content
