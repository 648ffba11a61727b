"""Which graph is deployed?"""

# B images, A anchors of a level, K classes, C candidates, D detections

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from adapt.architecture import mobilenet_v2
from adapt.artifacts import header
from adapt.cost.units import pyramid_sizes
from adapt.data.images import InputSize
from adapt.detector.file import DetectorInfo
from adapt.detector.retinanet import DetectorConfig, build_retinanet, top_down
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.runtime import Tail
from export.graph.nms import greedy_nms_keep, nms_keep
from export.graph.onnx_file import fused, read_description, write_onnx
from export.graph.options import DETECTIONS, RAW_HEADS, GraphOptions, Pixels
from export.graph.precision import FloatPrecision

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class Postprocess(nn.Module):
    """From the pyramid to detections: heads, decoding and non-maximum suppression.

    The semantics of torchvision's ``RetinaNet.postprocess_detections`` with fixed shapes only.
    torchvision takes all candidates of the levels; here the best ``nms_candidates`` of them are
    left, since the graph compares every pair. It differs where more than these pass the score
    threshold and yield fewer than ``detections`` boxes.

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
        levels = level_anchors(model, size)
        self.anchor_counts = [len(level) for level in levels]
        self.register_buffer("anchors", torch.cat(levels), persistent=False)

    def forward(self, pyramid: list[Tensor]) -> Outputs:
        """Return ``num_detections, boxes, scores, classes`` for P3 to P7.

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

        Ranking logits is ranking scores. Only what survives all rankings is decoded. Unless more
        candidates are left than a level may have, the levels need no ranking of their own.
        """
        most = self.detector.nms_candidates
        if most <= self.detector.candidates:
            return best_pairs(logits, most)
        levels, start = [], 0
        for level in torch.split(logits, self.anchor_counts, 1):
            value, anchor, label = best_pairs(level, self.detector.candidates)
            levels.append((value, anchor + start, label))
            start += level.shape[1]
        values, anchors, labels = (torch.cat(parts, 1) for parts in zip(*levels, strict=True))
        value, index = values.topk(min(most, values.shape[1]))
        return value, anchors.gather(1, index), labels.gather(1, index)

    def _decode(self, deltas: Tensor, anchor: Tensor) -> Tensor:
        """Return boxes ``Tensor[B, C, 4]`` of the anchors with the indices ``Tensor[B, C]``."""
        chosen = _rows(deltas, anchor).reshape(-1, 4)
        boxes = self.box_coder.decode_single(chosen, self.anchors[anchor].reshape(-1, 4))
        clipped: Tensor = clip_boxes_to_image(boxes, (self.size.height, self.size.width))
        return clipped.reshape(*anchor.shape, 4)

    def _best(self, keep: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> Outputs:
        number = min(self.detector.detections, keep.shape[1])
        scores, best = torch.where(keep, scores, 0.0).topk(number)
        found = keep.gather(1, best)
        count = found.sum(1, keepdim=True, dtype=torch.int32)
        boxes = torch.where(found.unsqueeze(2), _rows(boxes, best), 0.0)
        classes = torch.where(found, labels.gather(1, best), 0)
        return count, boxes, scores, classes.int()


def best_pairs(logits: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest logits of anchors and classes, with their anchors and classes.

    An anchor whose largest logit is not among the ``most`` largest of the anchors has no logit
    among the ``most`` largest of all, so only those anchors are sorted: much less than all logits.

    Args:
        logits: ``Tensor[B, A, K]``.
        most: How many.

    Returns:
        Three ``Tensor[B, C]`` with ``C = min(most, A * K)``, in descending order of the logits.
    """
    classes = logits.shape[2]
    anchors = logits.amax(2).topk(min(most, logits.shape[1])).indices
    rows = _rows(logits, anchors).flatten(1)
    values, index = rows.topk(min(most, rows.shape[1]))
    return values, anchors.gather(1, index // classes), index % classes


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """Select rows of each image's table: ``Tensor[B, N, w], Tensor[B, C] -> Tensor[B, C, w]``."""
    return table.gather(1, rows.unsqueeze(2).expand(-1, -1, table.shape[2]))


def run_heads(head: nn.Module, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return float32 logits ``Tensor[B, A, K]`` and deltas ``Tensor[B, A, 4]`` of all levels."""
    heads = head(pyramid)
    return heads["cls_logits"].float(), heads["bbox_regression"].float()


def level_anchors(model: RetinaNet, size: InputSize) -> list[Tensor]:
    """Return the anchors ``Tensor[A, 4]`` of P3 to P7, as torchvision lays them out."""
    grids = [torch.zeros(1, 1, *grid) for grid in pyramid_sizes(size.height, size.width)]
    images = ImageList(torch.zeros(1, 3, size.height, size.width), [(size.height, size.width)])
    (anchors,) = model.anchor_generator(images, grids)
    per_cell = model.anchor_generator.num_anchors_per_location()
    counts = [g.shape[2] * g.shape[3] * n for g, n in zip(grids, per_cell, strict=True)]
    return list(anchors.split(counts))


class DeployedDetector(nn.Module):
    """Images to detections."""

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
            images: ``Tensor[B, 3, H, W]``, float32 in [0, 1] or uint8, as
                :func:`adapt.data.images.fit` does it.
        """
        detections: Outputs = self.postprocess(self.features(images))
        return detections


class _TracedDetector(DeployedDetector):
    """Returns the raw heads too, so that they have names within the graph."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return detections, logits and box deltas."""
        heads = run_heads(self.postprocess.head, self.features(images))
        return (*self.postprocess.detect(*heads), *heads)


class RawHeads(nn.Module):
    """Images to logits ``Tensor[B, A, K]`` and box deltas ``Tensor[B, A, 4]`` of all levels."""

    def __init__(self, model: RetinaNet, pixels: Pixels = "float32") -> None:
        super().__init__()
        self.features = Features(model, pixels)
        self.head = model.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits and box deltas, P3 first."""
        return run_heads(self.head, self.features(images))


class Features(nn.Module):
    """Images to the pyramid P3 to P7; the normalisation is part of the graph.

    Images are normalised as float32; the pyramid has the precision of the weights.
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
        """Return five feature maps ``Tensor[B, C, h, w]``."""
        normalised = (images.float() - self.mean) / self.std
        return list(self.backbone(normalised.to(self.dtype)).values())


class RestOfDetector(nn.Module):
    """Lateral maps to detections: what no choice of the search changes (adapt.units.Rest)."""

    def __init__(
        self, model: RetinaNet, detector: DetectorConfig, size: InputSize, tail: Tail = "tensor-nms"
    ) -> None:
        super().__init__()
        self.fpn = model.backbone.fpn
        self.postprocess = Postprocess(model, detector, size, tail)

    def forward(self, lateral3: Tensor, lateral4: Tensor, lateral5: Tensor, p6: Tensor) -> Outputs:
        """Return ``num_detections, boxes, scores, classes``; see :class:`Postprocess`.

        Args:
            lateral3: Output of the finest lateral convolution, ``Tensor[B, F, H/8, W/8]``.
            lateral4: Output of the middle lateral convolution.
            lateral5: Output of the coarsest lateral convolution.
            p6: P6, before its activation.
        """
        pyramid = top_down(self.fpn, (lateral3, lateral4, lateral5), p6)
        detections: Outputs = self.postprocess(pyramid)
        return detections


def export_detector(
    model: RetinaNet,
    info: DetectorInfo,
    path: Path,
    options: GraphOptions | None = None,
    *,
    provenance: Mapping[str, Any],
) -> Path:
    """Write a detector as an ONNX file whose inputs and outputs are never half.

    In a graph that ends in detections, the raw heads are inner tensors with the names
    :data:`RAW_HEADS`.

    Args:
        model: The detector; it is left unchanged.
        info: Its description. Sizes other than a letterbox are rounded up to one.
        path: File to write.
        options: How; by default one float32 image to detections, in fp32.
        provenance: JSON content that says where the weights come from.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    options = options or GraphOptions()
    info = replace(info, input=info.input.fixed())
    body = _in_precision(model, options.precision)
    raw = options.tail == "none"
    graph = (
        RawHeads(body, options.pixels)
        if raw
        else _TracedDetector(body, info, options.tail, options.pixels)
    )
    description = header(
        "onnx-detector",
        **info.to_dict(),
        **options.to_dict(),
        architecture_hash=info.architecture.hash,
        provenance=dict(provenance),
    )
    dtype = torch.uint8 if options.pixels == "uint8" else torch.float32
    images = torch.zeros(options.batch, 3, info.input.height, info.input.width, dtype=dtype)
    return write_onnx(
        graph,
        [images],
        (["images"], options.outputs),
        description,
        path,
        options.opset,
        inner=() if raw else RAW_HEADS,
        most_images=options.batch if options.dynamic else None,
    )


def _in_precision(model: RetinaNet, precision: FloatPrecision) -> RetinaNet:
    """Return the model, for fp16 a copy in half precision whose BatchNorms were folded in fp32."""
    return fused(model).half() if precision == "fp16" else model


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
    return DetectorInfo.from_dict(content), content


def export_rest(
    detector: DetectorConfig,
    size: InputSize,
    path: Path,
    *,
    batch: int = 1,
    precision: FloatPrecision = "fp32",
    tail: Tail = "tensor-nms",
) -> Path:
    """Write the part of a detector that no choice of the search changes, to measure its latency.

    The weights are random; every shape is fixed, so they do not change the work. None are zero, as
    the biases of a new detector are: the exporter would leave those out.

    Args:
        detector: Pyramid, heads and post-processing.
        size: Input of the whole detector.
        path: File to write.
        batch: Images per inference.
        precision: Of the inputs, pyramid and heads; all after them is fp32.
        tail: ``tensor-nms`` or ``onnx-nms``.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    size = size.fixed()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_retinanet(Backbone(mobilenet_v2()), detector)
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.01)
    rest = RestOfDetector(_in_precision(model, precision), detector, size, tail)
    p3, p4, p5, p6, _ = pyramid_sizes(size.height, size.width)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    example = [
        torch.zeros(batch, detector.fpn_width, *level, dtype=dtype) for level in (p3, p4, p5, p6)
    ]
    description = header(
        "onnx-rest", detector=detector.to_dict(), input=size.to_dict(), precision=precision
    )
    names = ["lateral3", "lateral4", "lateral5", "p6"]
    return write_onnx(rest, example, (names, DETECTIONS), description, path)
