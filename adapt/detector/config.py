"""Which detector is it, before it is built? (pyramid, heads, and what they are trained by)"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from adapt.artifacts import LATER, identity
from adapt.errors import FORBID_UNKNOWN, AdaptError

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
    "pooled_side": 64,
    "pooled_samples": 16,
}
HeadKind = Literal["retinanet", "fcos", "ssdlite", "faster-rcnn"]
BoxLoss = Literal["l1", "smooth_l1", "giou", "diou", "ciou"]
WORDS = ("head", "separable", "box_loss")  # fields that are no numbers


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
        pooled_side: Cells per side of the features that Faster R-CNN pools of a proposal.
        pooled_samples: Samples per side of each of these cells. On a CPU, with torchvision's 7
            cells and 2 samples, pooling takes most of the second stage's time.
        box_loss: What RetinaNet's anchors on an object learn their boxes by: the deltas' distance
            (``l1``, ``smooth_l1``), or one minus a kind of IoU of the boxes.
            Other heads have the loss of their papers.
        box_loss_weight: Factor of that loss, beside that of the classes.
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
    pooled_side: int = field(default=7, metadata=LATER)
    pooled_samples: int = field(default=2, metadata=LATER)
    box_loss: BoxLoss = field(default="l1", metadata=LATER)
    box_loss_weight: float = field(default=1.0, metadata=LATER)

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadKind):
            known = ", ".join(get_args(HeadKind))
            raise AdaptError(f"detector.head must be one of {known}; got {self.head!r}")
        for name, value in asdict(self).items():
            if name in WORDS:
                continue
            if name.endswith("threshold"):
                if not 0 <= value <= 1:
                    raise AdaptError(f"detector.{name} must lie in [0, 1], got {value}")
            elif name == "box_loss_weight":
                if not 0 < value < math.inf:
                    raise AdaptError(f"detector.{name} must be above 0 and finite, got {value}")
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
        if self.box_loss not in get_args(BoxLoss):
            known = ", ".join(get_args(BoxLoss))
            raise AdaptError(f"detector.box_loss must be one of {known}; got {self.box_loss!r}")
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
