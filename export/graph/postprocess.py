"""How does a deployed graph get from the pyramid to detections? (heads, decoding, NMS)"""

# B images, A anchors, K classes, C candidates for NMS, D detections, F channels of the pyramid

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image

from adapt.cost.units import pyramid_sizes
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.runtime import Tail
from export.graph.nms import greedy_nms_keep, nms_keep
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
        return self.detect(pyramid, *self.heads(pyramid))

    def heads(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return float32 logits ``Tensor[B, A, K]`` and deltas ``Tensor[B, A, 4]``."""
        return run_heads(self.head, pyramid)

    def detect(self, _: list[Tensor], class_logits: Tensor, deltas: Tensor) -> Outputs:
        """Return detections for the pyramid and what :meth:`heads` returned for it."""
        logits, anchor, labels = self._candidates(class_logits)
        boxes = self._decode(deltas, anchor)
        scores = logits.sigmoid()
        valid = scores > self.detector.score_threshold
        keep = self._keep(boxes, scores, labels, valid, class_logits.shape[2])
        return self._best(keep, boxes, scores, labels)

    def _keep(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, classes: int
    ) -> Tensor:
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
