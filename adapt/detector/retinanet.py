"""How does a backbone become a detector? (RetinaNet, FCOS, SSDLite, Faster R-CNN: torchvision)"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

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

from adapt.artifacts import LATER, identity
from adapt.detector.crowds import on_crowd
from adapt.detector.faster_rcnn import FasterRCNN, box_heads, proposal_network
from adapt.detector.fcos import FCOSHead, matched_cells
from adapt.detector.separable import make_separable
from adapt.detector.ssdlite import OVERLAP, Levels, SeparableHead
from adapt.errors import FORBID_UNKNOWN, AdaptError
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD

COARSEST = 7  # P7, the last level of every pyramid
RATIOS = (0.5, 1.0, 2.0)  # height to width of the anchors of one scale
TAPPED_LEVELS = (3, 4, 5)  # of the pyramid, that read a tapped block each
# More are slips of a key.
MOST = {
    "head_depth": 64,
    "anchor_scales": 64,
    "fpn_width": 2**16,
    "anchor_size": 2**16,
    "proposals": 2**16,
    "box_width": 2**16,
}
HeadKind = Literal["retinanet", "fcos", "ssdlite", "faster-rcnn"]


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig:
    """Everything of a detector but its backbone, its classes and its weights.

    Attributes:
        fpn_width: Channels of the feature pyramid and the heads.
        head_depth: 3x3 convolutions before the output layer of each head. Of SSDLite they are
            separable, as the output layer is, and every level has its own; of Faster R-CNN they are
            those of the region proposal network, which has one tower for both outputs.
        anchor_size: Side of the smallest anchor, on the finest level, in pixels; it doubles per
            level. Of FCOS it is the largest distance from a cell of the finest level to the far
            side of a box, halved.
        score_threshold: Detections below this score are dropped.
        nms_threshold: IoU above which a lower-scored detection of the same class is dropped.
        candidates: Best candidates per level that reach non-maximum suppression.
        nms_candidates: Best candidates of all levels together that reach it in the deployed graph,
            which compares every pair; torchvision's inference takes all.
        detections: Largest number of detections per image.
        anchor_scales: Scales of anchors per cell, within the factor of 2 to the next level; each
            has three shapes. Fewer make the output layers smaller, and match boxes less closely.
            FCOS has none.
        head: ``retinanet`` (anchors), ``fcos`` (one box per cell, with a centerness; it has about
            an eighth of the outputs), ``ssdlite`` (anchors, separable layers, no top-down path) or
            ``faster-rcnn`` (two stages: anchors propose boxes, fully connected layers classify what
            is pooled from P3 to P5 in them).
        finest_level: First level of the pyramid: 3, or 4 or 5 where no object needs cells of 8 (16)
            pixels. The finest level is the most expensive one by far.
        separable: Whether the 3x3 convolutions of pyramid and heads are depthwise separable: a few
            times fewer multiply-adds, and weaker layers (:mod:`adapt.detector.separable`).
        proposals: Boxes of the first stage that reach the second one of Faster R-CNN; torchvision's
            1000 cost most of a small detector's time.
        box_width: Outputs of each of the two fully connected layers of Faster R-CNN.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    fpn_width: int = 256
    head_depth: int = 4
    anchor_size: int = 32
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 1000
    nms_candidates: int = 1000
    detections: int = 100
    anchor_scales: int = field(default=3, metadata=LATER)
    head: HeadKind = field(default="retinanet", metadata=LATER)
    finest_level: int = field(default=3, metadata=LATER)
    separable: bool = field(default=False, metadata=LATER)
    proposals: int = field(default=1000, metadata=LATER)
    box_width: int = field(default=1024, metadata=LATER)

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadKind):
            known = ", ".join(get_args(HeadKind))
            raise AdaptError(f"detector.head must be one of {known}; got {self.head!r}")
        for name, value in asdict(self).items():
            if name in ("head", "separable"):
                continue
            if name.endswith("threshold"):
                if not 0 <= value <= 1:
                    raise AdaptError(f"detector.{name} must lie in [0, 1], got {value}")
            elif value < (name != "head_depth"):
                least = "0" if name == "head_depth" else "1"
                raise AdaptError(f"detector.{name} must be at least {least}, got {value}")
        if self.separable and self.head == "ssdlite":
            raise AdaptError(
                "detector.separable is of retinanet and fcos: all layers of ssdlite are separable"
            )
        if self.separable and self.head == "faster-rcnn":
            raise AdaptError(
                "detector.separable is of retinanet and fcos; leave it out with head 'faster-rcnn'"
            )
        if self.finest_level not in TAPPED_LEVELS:
            raise AdaptError(
                f"detector.finest_level must be one of 3, 4 and 5, got {self.finest_level}"
            )
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise AdaptError(
                    f"detector.{name} must be at most {most}, got {getattr(self, name)}"
                )
        if self.head == "fcos" and self.anchor_size < 2:  # torchvision rounds half its side
            raise AdaptError(
                f"detector.anchor_size of fcos must be at least 2, got {self.anchor_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        content: dict[str, Any] = identity(self)
        return content

    @property
    def levels(self) -> range:
        """Levels of the pyramid; cells of level l are 2**l pixels wide."""
        return range(self.finest_level, COARSEST + 1)

    @property
    def unread_taps(self) -> int:
        """First taps of the backbone that no level of the pyramid reads."""
        return TAPPED_LEVELS.index(self.finest_level)

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at every place of every level."""
        return 1 if self.head == "fcos" else len(RATIOS) * self.anchor_scales


@dataclass(frozen=True)
class DetectorConfig(RetinaNetConfig):
    """A detector for a data set.

    Attributes:
        num_classes: Object classes; there is no background class.
    """

    num_classes: int


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
    if config.head != "retinanet":
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
    roi_heads = box_heads(
        width,
        config.box_width,
        config.num_classes,
        config.finest_level,
        proposals,
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
    )
    return FasterRCNN(BackboneWithFPN(body, config), rpn, roi_heads, proposals)


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
