"""How does a detector find boxes with separable layers? (SSDLite: Sandler et al., 1801.04381)"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from adapt.detector.logits import object_logits
from adapt.errors import AdaptError

OVERLAP = 0.5  # IoU from which an anchor learns an object, besides the nearest anchor of each
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of SSD's deltas: centre, then size
NEGATIVES = 3.0  # hardest background anchors that learn, for each one on an object
CERTAIN = 1e4  # a logit that leaves no loss to others


def separable(width: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 depthwise and a 1x1 convolution, each with BatchNorm and ReLU6."""
    layers = nn.Sequential(
        Conv2dNormActivation(width, width, stride=stride, groups=width, activation_layer=nn.ReLU6),
        Conv2dNormActivation(width, width, kernel_size=1, activation_layer=nn.ReLU6),
    )
    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            keep_signal(module)
    return layers


def keep_signal(conv: nn.Conv2d) -> None:
    """Give a convolution initial weights that keep the variance of its input (He et al.).

    torchvision's 0.03 leaves little of it. BatchNorm would make up for that in training, but its
    running statistics, which begin at 1, would be far off for the first tens of steps.
    """
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")


def reader(c_in: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that reads a tap, with bias; it starts as in torchvision's pyramid."""
    conv = nn.Conv2d(c_in, width, kernel, stride, kernel // 2)
    assert conv.bias is not None
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv


class ExtraLevels(nn.Module):
    """P6 by a 3x3 convolution with stride 2 on C5, and P7 by a separable one on P6.

    P6 is the one layer that is not separable: it reads the width that a search chooses, and the
    mapping of parameters needs readers that are linear in the channels that they read.

    Args:
        c_in: Channels of C5.
        width: Channels of the levels.
    """

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.p6 = reader(c_in, width, kernel=3, stride=2)
        self.p7 = separable(width, stride=2)

    def forward(self, c5: Tensor) -> list[Tensor]:
        """Return P6 and P7."""
        return self.after(self.p6(c5))

    def after(self, p6: Tensor) -> list[Tensor]:
        """Return P6 and P7, given P6 before its activation."""
        activated = F.relu6(p6)
        self._check_statistics(activated)
        return [activated, self.p7(activated)]

    def _check_statistics(self, p6: Tensor) -> None:
        images, _, height, width = p6.shape
        measures = any(isinstance(m, nn.BatchNorm2d) and m.training for m in self.p7.modules())
        if measures and images == 1 and height <= 2 and width <= 2:
            raise AdaptError(
                "the last level of ssdlite is one cell in an input of up to 128x128, and BatchNorm "
                "learns nothing from one value: train two images at a time, or on a larger input"
            )


class Levels(nn.Module):
    """Feature maps of SSDLite: the taps and the extra levels, without a top-down path.

    A tap goes through a 1x1 convolution to as many channels as all levels have, and ReLU6. The
    paper reads the expansion inside the block after C4 in this place, which is the same layer, as
    wide as the block says; here what follows must not depend on the widths that a search chooses.
    Names of parameters are those of torchvision's pyramid.

    Args:
        tap_widths: Channels of the taps, finest first.
        width: Channels of the levels.
    """

    def __init__(self, tap_widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(reader(c_in, width, kernel=1)) for c_in in tap_widths
        )
        self.extra_blocks = ExtraLevels(tap_widths[-1], width)

    def forward(self, taps: Mapping[str, Tensor]) -> "OrderedDict[str, Tensor]":
        """Return the levels, finest first, for the tapped feature maps."""
        maps = list(taps.values())
        laterals = [block(tap) for block, tap in zip(self.inner_blocks, maps, strict=True)]
        levels = [*map(F.relu6, laterals), *self.extra_blocks(maps[-1])]
        return OrderedDict(zip([*taps, "p6", "p7"], levels, strict=True))

    def after(self, laterals: Sequence[Tensor], p6: Tensor) -> list[Tensor]:
        """Return the levels, given the outputs of the convolutions that read the taps."""
        return [*map(F.relu6, laterals), *self.extra_blocks.after(p6)]


class SeparableHead(SSDLiteHead):  # type: ignore[misc]
    """Classes and boxes of the anchors, on every level by layers of its own.

    In training it returns logits with the background's first, as torchvision's. For inference, each
    class has one logit whose sigmoid is the class's softmax, so that what follows is the same as
    after RetinaNet's head.

    Args:
        width: Channels of the levels.
        levels: How many there are.
        anchors: Anchors per cell.
        num_classes: Object classes.
        depth: Separable convolutions before the prediction layer, which is separable itself.
    """

    def __init__(self, width: int, levels: int, anchors: int, num_classes: int, depth: int) -> None:
        super().__init__([width] * levels, [anchors] * levels, num_classes + 1, nn.BatchNorm2d)
        self.classification_head.num_classes = num_classes
        for branch in (self.classification_head, self.regression_head):
            branch.towers = nn.ModuleList(
                nn.Sequential(*(separable(width) for _ in range(depth))) for _ in range(levels)
            )
            for depthwise, _ in branch.module_list:
                keep_signal(depthwise[0])
        # Of torchvision's detector its loss reads nothing but these.
        self.box_coder = BoxCoder(BOX_WEIGHTS)
        self.neg_to_pos_ratio = NEGATIVES

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Return what belongs to every anchor of all levels, finest first."""
        classes, deltas = (
            branch([tower(level) for tower, level in zip(branch.towers, x, strict=True)])
            for branch in (self.classification_head, self.regression_head)
        )
        logits = classes if self.training else object_logits(classes)
        return {"cls_logits": logits, "bbox_regression": deltas}

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return cross entropy, with the hardest background, and smooth L1, per matched anchor.

        As in torchvision's SSD: images without objects teach nothing.

        Args:
            targets: Boxes and labels of every image.
            head_outputs: What :meth:`forward` returned in training.
            anchors: Of every image, ``Tensor[anchors, 4]``.
            matched: Of every image the box of each anchor, -1 for background, -2 for neither.
        """
        logits = head_outputs["cls_logits"]
        # What is certainly background has no loss, and is never among the hardest.
        background = torch.zeros_like(logits[0, 0])
        background[0] = CERTAIN
        neither = torch.stack(matched)[..., None] < -1
        outputs = {**head_outputs, "cls_logits": torch.where(neither, background, logits)}
        labelled = [{**target, "labels": target["labels"] + 1} for target in targets]
        losses: dict[str, Tensor] = SSD.compute_loss(self, labelled, outputs, anchors, matched)
        return losses
