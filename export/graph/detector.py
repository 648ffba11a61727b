"""What does a deployed graph compute, from images to detections, and how is it exported?"""

# B images, A anchors, K classes, C candidates for NMS, D detections, F channels of the pyramid

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from adapt.artifacts import header, parsing, typed
from adapt.cost.units import pyramid_sizes
from adapt.data.images import InputSize
from adapt.detector.file import DetectorInfo
from adapt.detector.retinanet import DetectorConfig
from adapt.errors import AdaptError
from adapt.runtime import Precision, Tail
from export.graph.canvas import Canvas, alone
from export.graph.nms import greedy_nms_keep, nms_keep
from export.graph.onnx_file import GraphSignature, fused, read_description, write_onnx
from export.graph.options import (
    RAW_HEADS,
    GraphOptions,
    ImageInput,
    Pixels,
)
from export.graph.precision import FloatPrecision
from export.graph.ranking import best_pairs, best_pairs_above, lowest_logit, rows_of

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Postprocess(nn.Module):
    """From the pyramid to detections: heads, decoding and non-maximum suppression.

    It computes what torchvision's ``RetinaNet.postprocess_detections`` computes, with fixed shapes
    only, and with one difference: torchvision suppresses among the candidates of all levels, here
    only the best ``nms_candidates`` of them remain, since the graph compares every pair. The
    detections differ only if more candidates than that pass the score threshold, and suppression
    leaves fewer than ``detections`` of the best ones.

    The heads compute in the precision of their weights, everything after them in fp32.
    """

    anchors: Tensor

    def __init__(
        self, model: RetinaNet, detector: DetectorConfig, size: InputSize, tail: Tail = "tensor-nms"
    ) -> None:
        super().__init__()
        self.head = model.head
        self.box_coder = model.box_coder
        self.detector = detector
        self.size = size
        self.tail = tail
        grids = pyramid_sizes(size.height, size.width, detector.finest_level)
        levels = level_anchors(model, size, grids)
        self.anchor_counts = [len(level) for level in levels]
        self.register_buffer("anchors", torch.cat(levels), persistent=False)

    def forward(self, pyramid: list[Tensor]) -> Outputs:
        """Return ``num_detections, boxes, scores, classes`` for the pyramid, finest level first.

        Returns:
            int32 ``Tensor[B, 1]``, float32 ``Tensor[B, D, 4]`` in input pixels, float32
            ``Tensor[B, D]`` in descending order and int32 ``Tensor[B, D]``; rows beyond
            ``num_detections`` are 0.
        """
        return self.detect(*run_heads(self.head, pyramid))

    def detect(self, class_logits: Tensor, deltas: Tensor) -> Outputs:
        """Return detections for ``Tensor[B, A, K]`` and ``Tensor[B, A, 4]`` of all levels."""
        logits, anchor, labels = self._candidates(class_logits)
        boxes = self._decode(deltas, anchor)
        scores = logits.sigmoid()
        keep = self._keep(boxes, scores, labels, class_logits.shape[2])
        return self._best(keep, boxes, scores, labels)

    def _keep(self, boxes: Tensor, scores: Tensor, labels: Tensor, classes: int) -> Tensor:
        valid = scores > self.detector.score_threshold
        candidates = (boxes, scores, labels, valid, self.detector.nms_threshold)
        if self.tail == "onnx-nms":
            kept: Tensor = greedy_nms_keep(*candidates, classes, self.detector.detections)
            return kept
        return nms_keep(*candidates)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best logits, their anchors and their labels, each ``Tensor[B, C]``.

        The sigmoid keeps the order, so logits are ranked and scores computed of the best only.
        """
        per_level, total = self.detector.candidates, self.detector.nms_candidates
        # The limit of a level cannot exclude what is among the best of all levels.
        if total <= per_level:
            return self._ranked(logits, total)
        levels, first_anchor = [], 0
        for level in torch.split(logits, self.anchor_counts, 1):
            value, anchor, label = self._ranked(level, per_level)
            levels.append((value, anchor + first_anchor, label))
            first_anchor += level.shape[1]
        values, anchors, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        value, index = values.topk(min(total, values.shape[1]))
        return value, anchors.gather(1, index), labels.gather(1, index)

    def _ranked(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        # A number is known before the graph runs; with a dynamic batch it is a symbol.
        one_image = type(logits.shape[0]) is int and logits.shape[0] == 1
        lowest = lowest_logit(self.detector.score_threshold)
        if self.tail == "onnx-nms" and one_image and lowest > -math.inf:
            found: tuple[Tensor, Tensor, Tensor] = best_pairs_above(logits, count, lowest)
            return found
        return best_pairs(logits, count)

    def _decode(self, deltas: Tensor, anchor: Tensor) -> Tensor:
        """Return boxes ``Tensor[B, C, 4]`` of the anchors with the indices ``Tensor[B, C]``."""
        chosen = rows_of(deltas, anchor).reshape(-1, 4)
        boxes = self.box_coder.decode_single(chosen, self.anchors[anchor].reshape(-1, 4))
        clipped: Tensor = clip_boxes_to_image(boxes, (self.size.height, self.size.width))
        return clipped.reshape(*anchor.shape, 4)

    def _best(self, keep: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> Outputs:
        """Return the kept candidates with the highest scores, and zeros in the rows left over."""
        rows = min(self.detector.detections, keep.shape[1])
        scores, best = torch.where(keep, scores, 0.0).topk(rows)
        filled = keep.gather(1, best)
        number = filled.sum(1, keepdim=True, dtype=torch.int32)
        boxes = torch.where(filled.unsqueeze(2), rows_of(boxes, best), 0.0)
        classes = torch.where(filled, labels.gather(1, best), 0)
        return number, boxes, scores, classes.int()


def run_heads(head: nn.Module, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return float32 logits ``Tensor[B, A, K]`` and deltas ``Tensor[B, A, 4]`` of all levels."""
    heads = head(pyramid)
    return heads["cls_logits"].float(), heads["bbox_regression"].float()


def level_anchors(
    model: RetinaNet, size: InputSize, levels: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Return the anchors ``Tensor[A, 4]`` of every level, as torchvision lays them out."""
    grids = [torch.zeros(1, 1, *level) for level in levels]
    images = ImageList(torch.zeros(1, 3, size.height, size.width), [(size.height, size.width)])
    (anchors,) = model.anchor_generator(images, grids)
    per_cell = model.anchor_generator.num_anchors_per_location()
    counts = [g.shape[2] * g.shape[3] * n for g, n in zip(grids, per_cell, strict=True)]
    return list(anchors.split(counts))


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
        self.postprocess = Postprocess(model, info.detector, info.input.fixed(), tail)

    def forward(self, images: Tensor) -> Outputs:
        """Return ``num_detections, boxes, scores, classes``; see :class:`Postprocess`.

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
        heads = run_heads(self.postprocess.head, self.features(images))
        return (*self.postprocess.detect(*heads), *heads)


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
        AdaptError: If the file cannot be written.
    """
    options = options or GraphOptions()
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
