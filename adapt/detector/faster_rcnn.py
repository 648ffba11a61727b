"""How does a detector find boxes in two stages? (Faster R-CNN: Ren et al., arXiv 1506.01497)"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import initLevelMapper

from adapt.detector.config import DetectorConfig
from adapt.detector.crowds import on_crowd

LAST_POOLED = 5  # P5: the pyramid's levels of the taps are pooled from
TRAINED_MORE = 2  # times as many candidates and proposals in training, as torchvision has
SAMPLED = 512  # proposals per image that learn, at most
LOSSES = {  # ours by torchvision's names
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_regression",
    "loss_classifier": "classification",
    "loss_box_reg": "bbox_regression",
}


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """The first stage: torchvision's, which learns nothing on crowds and nothing from nothing."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return of every image the anchors' labels (1, 0, or -1 for neither), and their boxes."""
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, of_image, target in zip(labels, anchors, targets, strict=True):
            label[on_crowd(of_image, target) & (label <= 0)] = -1
        return labels, boxes

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the proposals of every image and their scores; in training there is always one.

        The mean loss over no proposals would be NaN, so that an image without any has itself.
        """
        boxes, scores = super().filter_proposals(
            proposals, objectness, image_shapes, num_anchors_per_level
        )
        for place, (height, width) in enumerate(image_shapes):
            if self.training and not len(boxes[place]):
                boxes[place] = boxes[place].new_tensor([[0.0, 0.0, width, height]])
                scores[place] = scores[place].new_ones(1)
        return boxes, scores

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of objectness and boxes; 0 where crowds leave no anchor to learn."""
        if not any(bool((label >= 0).any()) for label in labels):
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        losses: tuple[Tensor, Tensor] = super().compute_loss(
            objectness, pred_bbox_deltas, labels, regression_targets
        )
        return losses


class BoxHeads(RoIHeads):  # type: ignore[misc]
    """The second stage: torchvision's, which pools from the first levels whatever their names."""

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], ...]:
        """Return the proposals that learn, and what; those on crowds do not."""
        apart = [
            self._apart(boxes, target) for boxes, target in zip(proposals, targets, strict=True)
        ]
        selected: tuple[list[Tensor], ...] = super().select_training_samples(apart, targets)
        return selected

    def _apart(self, proposals: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        """Return the proposals that find an object or lie on no crowd."""
        crowded = on_crowd(proposals, target)
        if len(target["boxes"]):
            found = self.box_similarity(target["boxes"].to(proposals.dtype), proposals)
            crowded &= found.amax(0) < self.proposal_matcher.high_threshold
        # The mean loss over no proposals would be NaN: one is background then.
        return proposals[:1] if crowded.all() else proposals[~crowded]

    def forward(
        self,
        features: Mapping[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections, or in training losses.

        Args:
            features: The pyramid, finest level first.
            proposals: Of every image, ``Tensor[N, 4]``.
            image_shapes: (height, width) of every image.
            targets: Boxes and labels, counted from 1, of every image.
        """
        pooled = dict(zip(self.box_roi_pool.featmap_names, features.values(), strict=False))
        result: tuple[list[dict[str, Tensor]], dict[str, Tensor]] = super().forward(
            pooled, proposals, image_shapes, targets
        )
        return result


class Stages(nn.Module):
    """Both stages of a detector as one module of the pyramid, as other detectors have one head.

    Args:
        rpn: The first stage.
        roi_heads: The second one.
        proposals: Boxes per image between the two, at most.
    """

    def __init__(self, rpn: ProposalNetwork, roi_heads: BoxHeads, proposals: int) -> None:
        super().__init__()
        self.rpn, self.roi_heads, self.proposals = rpn, roi_heads, proposals
        self.training = rpn.training

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Return the outputs of both stages, the second one's of boxes that are the whole image.

        Which boxes the first stage proposes depends on the image, how many hardly does: these take
        as much computation, with shapes that are known before.

        Args:
            levels: The pyramid, finest level first.
        """
        logits, deltas = first_stage(self.rpn.head, levels)
        number = most_proposals(
            [level.shape[-2] * level.shape[-1] for level in levels],
            self.rpn.anchor_generator.num_anchors_per_location()[0],
            self.rpn._pre_nms_top_n["testing"],
            self.proposals,
        )
        pool = self.roi_heads.box_roi_pool
        last = levels[len(pool.featmap_names) - 1]
        boxes = last.new_zeros(len(last) * number, 5)  # image, and the corners of its feature map
        boxes[:, 0] = torch.arange(len(last), device=last.device).repeat_interleave(number)
        boxes[:, 3], boxes[:, 4] = last.shape[-1], last.shape[-2]
        features = self.roi_heads.box_head(
            roi_align(last, boxes, pool.output_size, 1.0, pool.sampling_ratio)
        )
        classes, regression = self.roi_heads.box_predictor(features)
        return {
            "cls_logits": logits,
            "bbox_regression": deltas,
            "box_classes": classes.reshape(len(last), number, -1),
            "box_regression": regression.reshape(len(last), number, -1),
        }


def first_stage(head: RPNHead, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return objectness ``Tensor[N, anchors, 1]`` and deltas ``Tensor[N, anchors, 4]``."""
    logits, deltas = concat_box_prediction_layers(*head(levels))
    images = levels[0].shape[0]
    return logits.reshape(images, -1, 1), deltas.reshape(images, -1, 4)


def most_proposals(
    cells: Sequence[int], anchors_per_cell: int, candidates: int, proposals: int
) -> int:
    """Return how many boxes reach the second stage at most.

    Args:
        cells: Of every level.
        anchors_per_cell: At every place of every level.
        candidates: Best anchors per level that reach non-maximum suppression.
        proposals: Of all levels that are left after it.
    """
    return min(proposals, sum(min(candidates, anchors_per_cell * number) for number in cells))


class FasterRCNN(GeneralizedRCNN):  # type: ignore[misc]
    """torchvision's Faster R-CNN with labels from 0, as all detectors here have them.

    Args:
        backbone: Images to the pyramid.
        rpn: The first stage.
        roi_heads: The second one.
        proposals: Boxes per image between the two, at most.
    """

    def __init__(
        self, backbone: nn.Module, rpn: ProposalNetwork, roi_heads: BoxHeads, proposals: int
    ) -> None:
        super().__init__(backbone, rpn, roi_heads, None)
        self.proposals = proposals

    @property
    def head(self) -> Stages:
        """Both stages, whose parameters are the detector's own."""
        return Stages(self.rpn, self.roi_heads, self.proposals)

    @property
    def layers_of_head(self) -> list[nn.Module]:
        """The modules of both stages that have parameters."""
        return [self.rpn.head, self.roi_heads.box_head, self.roi_heads.box_predictor]

    @property
    def anchor_generator(self) -> AnchorGenerator:
        """Where the first stage looks."""
        return self.rpn.anchor_generator

    @property
    def box_coder(self) -> Any:
        """Decodes the boxes of the second stage."""
        return self.roi_heads.box_coder

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the detections of every image, or in training the losses of the batch.

        Args:
            images: Each ``Tensor[3, H, W]``.
            targets: Boxes and labels of every image, if it trains.
        """
        if targets is not None:  # torchvision's 0 is the background
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        outputs = super().forward(images, targets)
        if self.training:
            return {LOSSES[name]: loss for name, loss in outputs.items()}
        return [{**image, "labels": image["labels"] - 1} for image in outputs]


def proposal_network(
    head: RPNHead, anchors: AnchorGenerator, candidates: int, proposals: int
) -> ProposalNetwork:
    """Return the first stage with torchvision's settings.

    Args:
        head: Its layers.
        anchors: Where they look.
        candidates: Best anchors per level that reach non-maximum suppression.
        proposals: Of all levels that are left after it.
    """
    before, after = (
        {"training": TRAINED_MORE * most, "testing": most} for most in (candidates, proposals)
    )
    return ProposalNetwork(
        anchors,
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=before,
        post_nms_top_n=after,
        nms_thresh=0.7,
    )


def box_heads(config: DetectorConfig) -> BoxHeads:
    """Return the second stage of a detector; what its configuration leaves open is torchvision's.

    Args:
        config: The detector.
    """
    levels, side = range(config.finest_level, LAST_POOLED + 1), config.pooled_side
    pool = MultiScaleRoIAlign([str(level) for level in levels], side, config.pooled_samples)
    # Left to itself it guesses them from the first images that it sees, and wrongly of small ones.
    pool.scales = [2.0**-level for level in levels]
    pool.map_levels = initLevelMapper(levels[0], levels[-1])
    return BoxHeads(
        pool,
        TwoMLPHead(config.fpn_width * side**2, config.box_width),
        FastRCNNPredictor(config.box_width, config.num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=min(SAMPLED, config.proposals),
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
    )
