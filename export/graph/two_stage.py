"""How does the graph of a two-stage detector get from the pyramid to detections?"""

# B images, A anchors, N proposals, K classes, C candidates for NMS, F channels of the pyramid

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.faster_rcnn import BoxHeads, FasterRCNN, first_stage
from adapt.detector.logits import object_logits
from adapt.errors import AdaptError
from adapt.runtime import Tail
from export.graph.nms import greedy_nms_keep
from export.graph.pooling import pool_boxes
from export.graph.postprocess import Outputs, Postprocess
from export.graph.ranking import NOT_A_CANDIDATE, rows_of

THINNEST_BOX = 1e-2  # pixels; torchvision drops thinner boxes


def check_graph(
    detector: DetectorConfig,
    tail: Tail,
    *,
    engine: bool = False,
    of: str = "the detector",
) -> None:
    """Check that a detector can be deployed in a way.

    Args:
        detector: Its configuration.
        tail: How its graph ends.
        engine: Whether an engine is built from it.
        of: What the detector is called in errors, such as its file.

    Raises:
        AdaptError: If it has two stages, and that is not in ONNX Runtime.
    """
    if detector.head != "faster-rcnn":
        return
    if engine or tail == "tensor-nms":
        asked = "a TensorRT engine" if engine else "tail 'tensor-nms'"
        raise AdaptError(
            f"{of} has head 'faster-rcnn', which is deployed in ONNX Runtime only, not as {asked}; "
            "leave out --trt and --tail, or train a detector with another head for TensorRT"
        )
    if tail == "none":
        raise AdaptError(
            f"{of} has head 'faster-rcnn', whose second stage needs what the first one found, so "
            "that no graph ends in raw heads (tail 'none'); leave out --tail"
        )


def postprocess_of(
    model: RetinaNet | FasterRCNN, detector: DetectorConfig, size: InputSize, tail: Tail
) -> Postprocess:
    """Return what follows the pyramid of a detector.

    Raises:
        AdaptError: As of :func:`check_graph`.
    """
    check_graph(detector, tail)
    kind = TwoStagePostprocess if isinstance(model, FasterRCNN) else Postprocess
    return kind(model, detector, size, tail)


class TwoStagePostprocess(Postprocess):
    """From the pyramid to detections by two stages, as torchvision's RPN and RoIHeads compute it.

    Shapes are fixed but inside of two operators, suppression and RoIAlign: rows that the first
    stage leaves over are boxes without a candidate. Of all pairs of proposal and class only the
    best ``nms_candidates`` remain, as in :class:`export.graph.postprocess.Postprocess`.
    """

    def __init__(
        self, model: FasterRCNN, detector: DetectorConfig, size: InputSize, tail: Tail
    ) -> None:
        super().__init__(model, detector, size, tail)
        self.rpn_coder = model.rpn.box_coder
        self.overlap, self.thinnest = model.rpn.nms_thresh, model.rpn.min_size
        self.boxes = _Boxes(model.roi_heads, detector.finest_level)

    def heads(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return float32 objectness ``Tensor[B, A, 1]`` and deltas ``Tensor[B, A, 4]``."""
        logits, deltas = first_stage(self.head.rpn.head, pyramid)
        return logits.float(), deltas.float()

    def detect(self, pyramid: list[Tensor], class_logits: Tensor, deltas: Tensor) -> Outputs:
        """Return detections for the pyramid and what :meth:`heads` returned for it."""
        proposals, proposed = self.propose(class_logits.squeeze(2), deltas)
        logits, codes = self.boxes(pyramid, proposals)
        classes = logits.shape[2]
        logits = torch.where(proposed.unsqueeze(2), logits, NOT_A_CANDIDATE)
        best, place, labels = self._ranked(logits, self.detector.nms_candidates)
        # Every class has a box of its own.
        chosen = rows_of(codes.flatten(1, 2), place * classes + labels)
        boxes = self._clipped(self.box_coder, chosen, rows_of(proposals, place))
        scores = best.sigmoid()
        valid = (scores > self.detector.score_threshold) & _thick(boxes, THINNEST_BOX)
        keep = self._keep(boxes, scores, labels, valid, classes)
        return self._best(keep, boxes, scores, labels)

    def propose(self, objectness: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals ``Tensor[B, N, 4]``, best first, and which rows are some.

        Args:
            objectness: Logits, ``Tensor[B, A]``.
            deltas: ``Tensor[B, A, 4]``.
        """
        values, anchors, levels, first = [], [], [], 0
        for number, level in enumerate(torch.split(objectness, self.anchor_counts, 1)):
            value, anchor = level.topk(min(self.detector.candidates, level.shape[1]))
            values.append(value)
            anchors.append(anchor + first)
            levels.append(torch.full_like(anchor, number))
            first += level.shape[1]
        scores, anchor = torch.cat(values, 1).sigmoid(), torch.cat(anchors, 1)
        boxes = self._clipped(self.rpn_coder, rows_of(deltas, anchor), self.anchors[anchor])
        keep = greedy_nms_keep(
            boxes,
            scores,
            torch.cat(levels, 1),
            _thick(boxes, self.thinnest),
            self.overlap,
            len(levels),
            self.detector.proposals,
        )
        rows = min(self.detector.proposals, scores.shape[1])
        _, best = torch.where(keep, scores, -1.0).topk(rows)
        return rows_of(boxes, best), keep.gather(1, best)

    def _clipped(self, coder: BoxCoder, codes: Tensor, boxes: Tensor) -> Tensor:
        """Return what codes say of boxes, each ``Tensor[B, N, 4]``, cut at the input's edge."""
        found = coder.decode_single(codes.reshape(-1, 4), boxes.reshape(-1, 4))
        clipped: Tensor = clip_boxes_to_image(found, (self.size.height, self.size.width))
        return clipped.reshape(boxes.shape)


class _Boxes(nn.Module):
    """The second stage up to its outputs."""

    def __init__(self, roi_heads: BoxHeads, finest_level: int) -> None:
        super().__init__()
        self.box_head, self.box_predictor = roi_heads.box_head, roi_heads.box_predictor
        self.pool, self.finest_level = roi_heads.box_roi_pool, finest_level

    def forward(self, pyramid: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``Tensor[B, N, K]``, whose sigmoid is the softmax, and deltas.

        Args:
            pyramid: Finest level first.
            boxes: ``Tensor[B, N, 4]``.

        Returns:
            Both float32; the deltas are ``Tensor[B, N, K, 4]``.
        """
        images, number = boxes.shape[:2]
        image = torch.arange(images, device=boxes.device)[:, None].expand(images, number)
        rois = boxes.reshape(-1, 4)
        levels = [level.float() for level in pyramid[: len(self.pool.scales)]]
        (side, _), samples = self.pool.output_size, self.pool.sampling_ratio
        pooled = pool_boxes(
            levels,
            rois,
            image.reshape(-1),
            self.pool.map_levels([rois]),
            self.finest_level,
            side,
            samples,
        )
        features = self.box_head(pooled.to(pyramid[0].dtype))
        classes, deltas = self.box_predictor(features)
        logits = object_logits(classes.reshape(images, number, -1))
        codes = deltas.float().reshape(images, number, -1, 4)
        return logits, codes[:, :, 1:]  # without the background's


def _thick(boxes: Tensor, least: float) -> Tensor:
    """Return which boxes ``Tensor[..., 4]`` have both sides of at least so many pixels."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= least).all(-1)
