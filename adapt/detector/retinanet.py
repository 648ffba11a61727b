"""How does a backbone become a detector? (RetinaNet, FCOS, SSDLite, Faster R-CNN: torchvision)"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adapt.detector.config import RATIOS, DetectorConfig, RetinaNetConfig
from adapt.detector.crowds import on_crowd
from adapt.detector.faster_rcnn import FasterRCNN, box_heads, proposal_network
from adapt.detector.fcos import FCOSHead, matched_cells
from adapt.detector.separable import make_separable
from adapt.detector.ssdlite import OVERLAP, Levels, SeparableHead
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD


class BackboneWithFPN(nn.Module):
    """Backbone ``body`` and feature pyramid ``fpn``, as torchvision names them.

    Args:
        body: See :func:`build_detector`.
        config: The detector.
    """

    def __init__(self, body: nn.Module, config: RetinaNetConfig) -> None:
        super().__init__()
        self.body = body
        self.unread = config.unread_taps
        self.out_channels = width = config.fpn_width
        tap_widths: Sequence[int] = body.tap_widths  # type: ignore[assignment]
        read = list(tap_widths[self.unread :])
        self.fpn: FeaturePyramidNetwork | Levels
        if config.head == "ssdlite":
            self.fpn = Levels(read, width)
            return
        extra = LastLevelP6P7(read[-1], width)
        # torchvision computes P6 from P5 whenever C5 happens to be as wide as the pyramid; what P6
        # reads must not depend on the width that the search chose.
        extra.use_P5 = False
        self.fpn = FeaturePyramidNetwork(read, width, extra_blocks=extra)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the levels, finest first, for normalised images ``Tensor[N, 3, H, W]``."""
        taps = list(self.body(x).items())[self.unread :]
        pyramid: OrderedDict[str, Tensor] = self.fpn(OrderedDict(taps))
        return pyramid


def levels_after(
    fpn: FeaturePyramidNetwork | Levels, laterals: Sequence[Tensor], p6: Tensor
) -> list[Tensor]:
    """Return the pyramid, finest level first, computed from the laterals' outputs and P6.

    Args:
        fpn: The pyramid of a detector.
        laterals: Outputs of the lateral convolutions, finest first.
        p6: P6, before its activation.
    """
    if isinstance(fpn, Levels):
        return fpn.after(laterals, p6)
    inner = [laterals[-1]]
    for lateral in reversed(laterals[:-1]):
        above = F.interpolate(inner[0], size=lateral.shape[-2:], mode="nearest")
        inner.insert(0, lateral + above)
    pyramid = [conv(x) for conv, x in zip(fpn.layer_blocks, inner, strict=True)]
    return [*pyramid, p6, fpn.extra_blocks.p7(F.relu(p6))]


class NormalizeAndBatch(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's input transform without its resizing, for images in uint8 too.

    Images are resized by the data set, the same way as for deployment. (torchvision's own
    ``_skip_resize`` skips it in training only.)
    """

    def normalize(self, image: Tensor) -> Tensor:
        """Return an image in [0, 1], or in uint8, with ImageNet's mean and deviation taken out."""
        normalized: Tensor = super().normalize(image / 255 if image.dtype == torch.uint8 else image)
        return normalized

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image and target as they are."""
        return image, target


class RetinaNetWithCrowds(RetinaNet):  # type: ignore[misc]
    """RetinaNet that learns nothing from anchors on boxes around groups.

    A target may hold ``crowds``, ``float32[M, 4]``. Anchors that match no object and lie on one of
    them with at least half of their area are neither background nor object. COCO's evaluation
    ignores detections there in the same way.
    """

    box_loss_weight = 1.0

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses of a batch; as in torchvision but for crowds."""
        matched = [
            self._matched(target, boxes) for target, boxes in zip(targets, anchors, strict=True)
        ]
        losses: dict[str, Tensor] = self.head.compute_loss(targets, head_outputs, anchors, matched)
        losses["bbox_regression"] = losses["bbox_regression"] * self.box_loss_weight
        return losses

    def _matched(self, target: dict[str, Tensor], anchors: Tensor) -> Tensor:
        """Return the box of every anchor, -1 for background, -2 for neither."""
        matched = self._box_of(target["boxes"], anchors)
        between: int = self.proposal_matcher.BETWEEN_THRESHOLDS
        return torch.where(on_crowd(anchors, target) & (matched < 0), between, matched)

    def _box_of(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the box of every anchor without regard to crowds."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, dtype=torch.int64, device=anchors.device)
        matched: Tensor = self.proposal_matcher(box_iou(boxes, anchors))
        return matched


class FCOS(RetinaNetWithCrowds):
    """FCOS in the frame of RetinaNet: a square in every cell stands for the anchors."""

    def _box_of(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        return matched_cells(boxes, anchors, self.box_coder, self.finest_stride)


def build_detector(body: nn.Module, config: DetectorConfig) -> RetinaNet | FasterRCNN:
    """Return a detector around a backbone.

    It takes a list of ``Tensor[3, H, W]``, uint8 or in [0, 1], already resized; it normalises and,
    when sizes differ, pads to a common multiple of 32. Labels are 0 to ``num_classes - 1``.

    Args:
        body: The backbone, such as :class:`adapt.network.backbone.Backbone`: it returns the tapped
            feature maps, finest first, and has their channels as ``tap_widths``.
        config: Everything else of the detector.
    """
    build = _faster_rcnn if config.head == "faster-rcnn" else _one_stage
    model = build(body, config)
    model.transform = NormalizeAndBatch(
        0, 0, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)
    )
    return model


def _one_stage(body: nn.Module, config: DetectorConfig) -> RetinaNet:
    head = build_head(config)  # before the pyramid, or a seed gives other weights
    kind = FCOS if config.head == "fcos" else RetinaNetWithCrowds
    model = kind(
        BackboneWithFPN(body, config),
        config.num_classes,
        head=head,
        anchor_generator=anchor_generator(config),
        proposal_matcher=SSDMatcher(OVERLAP) if config.head == "ssdlite" else None,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
        topk_candidates=config.candidates,
    )
    if config.head == "retinanet":
        head.regression_head._loss_type = config.box_loss
        model.box_loss_weight = config.box_loss_weight
    else:
        model.box_coder = head.box_coder
    if config.head == "fcos":
        model.finest_stride = 2**config.finest_level
    if config.separable:
        make_separable(model, config.head_depth)
    return model


def _faster_rcnn(body: nn.Module, config: DetectorConfig) -> FasterRCNN:
    width, proposals = config.fpn_width, config.proposals
    head = RPNHead(width, config.anchors_per_cell)
    head.conv = build_head_tower(width, config.head_depth)
    rpn = proposal_network(head, anchor_generator(config), config.candidates, proposals)
    return FasterRCNN(BackboneWithFPN(body, config), rpn, box_heads(config), proposals)


def build_head(config: DetectorConfig) -> RetinaNetHead | FCOSHead | SeparableHead:
    """Return the heads of a one-stage detector with fresh weights."""
    width, anchors, classes = config.fpn_width, config.anchors_per_cell, config.num_classes
    if config.head == "ssdlite":
        return SeparableHead(width, len(config.levels), anchors, classes, config.head_depth)
    fcos = config.head == "fcos"
    head = FCOSHead(width, classes) if fcos else RetinaNetHead(width, anchors, classes)
    for branch in (head.classification_head, head.regression_head):
        branch.conv = build_head_tower(width, config.head_depth)
    return head


def anchor_generator(config: DetectorConfig) -> AnchorGenerator:
    """Return the anchors of a cell: RetinaNet's nine are three octave fractions, three shapes.

    Whatever their number, scales are spread evenly over the same octave. FCOS has one square.
    """
    bases = [config.anchor_size * 2**place for place in range(len(config.levels))]
    if config.head == "fcos":
        return AnchorGenerator(tuple((base,) for base in bases), ((1.0,),) * len(bases))
    octaves = scale_octaves(config.anchor_scales)
    sizes = tuple(tuple(int(base * 2**octave) for octave in octaves) for base in bases)
    return AnchorGenerator(sizes, (RATIOS,) * len(bases))


def scale_octaves(number: int) -> list[float]:
    """Return the scales of anchors, as powers of 2: 0, 1/3 and 2/3 of three, 1/3 of one."""
    return [(place - (number - 1) / 2) / number + 1 / 3 for place in range(number)]


def tower_std(width: int) -> float:
    """Return the standard deviation of the initial weights of a head's 3x3 convolutions.

    RetinaNet's 0.01 is for 256 channels. A convolution with ReLU scales its signal by about
    ``std * sqrt(9 * width / 2)``: with 64 channels 0.01 would leave 0.0008 of it after four
    convolutions, and the head starves. He et al.'s value keeps the signal.
    """
    return max(0.01, math.sqrt(2 / (9 * width)))


def build_head_tower(width: int, depth: int) -> nn.Sequential:
    """Return the 3x3 convolutions, each with ReLU, before the output layer of a head."""
    convs = [Conv2dNormActivation(width, width, norm_layer=None) for _ in range(depth)]
    for conv in convs:
        nn.init.normal_(conv[0].weight, std=tower_std(width))
        nn.init.zeros_(conv[0].bias)
    return nn.Sequential(*convs)


@torch.no_grad()
def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters (Table II's Params: buffers are not counted)."""
    return sum(p.numel() for p in module.parameters())
