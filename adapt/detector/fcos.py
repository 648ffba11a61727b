"""How does a detector find boxes without anchors? (FCOS: Tian et al., arXiv 2006.09214)"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops import box_area, generalized_box_iou_loss, sigmoid_focal_loss

from adapt.detector.logits import logit_of

RADIUS = 1.5  # strides around the centre of a box in which cells learn it
FARTHEST = math.log(1000 / 16)  # of the exponent of a distance, as torchvision limits sizes


class DistanceCoder(BoxLinearCoder):  # type: ignore[misc]
    """Boxes as distances of their sides from the centre of a square, in sides of the square."""

    def decode_single(self, codes: Tensor, squares: Tensor) -> Tensor:
        """Return boxes ``Tensor[N, 4]`` of distances (left, top, right, bottom)."""
        boxes: Tensor = self.decode(codes, squares)
        return boxes


class DistanceHead(FCOSRegressionHead):  # type: ignore[misc]
    """Distances and centerness of every cell, from one tower."""

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return positive ``Tensor[N, cells, 4]`` and logits ``Tensor[N, cells, 1]``."""
        features = [self.conv(level) for level in x]
        exponents = torch.cat([_by_cell(self.bbox_reg(level)) for level in features], dim=1)
        centerness = torch.cat([_by_cell(self.bbox_ctrness(level)) for level in features], dim=1)
        return exponents.float().clamp(max=FARTHEST).exp(), centerness


class FCOSHead(torch.nn.Module):
    """Classes, distances and centerness of one square per cell.

    Distances are exponentials, as in the first version of FCOS: the sides of a box that a level has
    to learn are about one square away, which is what it starts with. For inference, class and
    centerness become one logit, that of the geometric mean of their probabilities, so that what
    follows is the same as after RetinaNet's head.

    Args:
        width: Channels of the pyramid.
        num_classes: Object classes.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classification_head = FCOSClassificationHead(width, 1, num_classes, num_convs=0)
        self.regression_head = DistanceHead(width, 1, num_convs=0)
        self.box_coder = DistanceCoder()

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Return what belongs to every cell of all levels, finest first."""
        classes = self.classification_head(x)
        distances, centerness = self.regression_head(x)
        if self.training:
            return {
                "cls_logits": classes,
                "bbox_regression": distances,
                "bbox_ctrness": centerness,
            }
        return {"cls_logits": mean_logit(classes, centerness), "bbox_regression": distances}

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        squares: list[Tensor],
        matched: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return focal loss, generalized IoU loss and centerness loss, per cell on an object.

        Args:
            targets: Boxes and labels of every image.
            head_outputs: What :meth:`forward` returned in training.
            squares: Of every image, ``Tensor[cells, 4]``.
            matched: Of every image the box of each cell, -1 for background, -2 for neither.
        """
        zero = head_outputs["cls_logits"].sum() * 0
        classification, regression, centering = zero, zero, zero
        for index, (target, cells, box_of) in enumerate(
            zip(targets, squares, matched, strict=True)
        ):
            logits, codes, centerness = (outputs[index] for outputs in head_outputs.values())
            on_object = box_of >= 0
            wanted = torch.zeros_like(logits)
            wanted[on_object, target["labels"][box_of[on_object]]] = 1
            counted = box_of >= -1
            classification = classification + sigmoid_focal_loss(
                logits[counted], wanted[counted], reduction="sum"
            )
            boxes, cells = target["boxes"][box_of[on_object]], cells[on_object]
            found = self.box_coder.decode(codes[on_object], cells)
            regression = regression + generalized_box_iou_loss(found, boxes, reduction="sum")
            centering = centering + F.binary_cross_entropy_with_logits(
                centerness[on_object, 0],
                centerness_of(self.box_coder.encode(cells, boxes)),
                reduction="sum",
            )
        number = max(1, sum(int((box_of >= 0).sum()) for box_of in matched))
        return {
            "classification": classification / number,
            "bbox_regression": regression / number,
            "bbox_ctrness": centering / number,
        }


def mean_logit(classes: Tensor, centerness: Tensor) -> Tensor:
    """Return the logit of the geometric mean of two probabilities.

    Args:
        classes: Logits, ``Tensor[N, cells, K]``.
        centerness: Logits, ``Tensor[N, cells, 1]``.
    """
    logarithm = -(F.softplus(-classes.float()) + F.softplus(-centerness.float())) / 2
    return logit_of(logarithm)


def centerness_of(distances: Tensor) -> Tensor:
    """Return how central points are in boxes by distances ``Tensor[N, 4]`` to their sides."""
    horizontal, vertical = distances[:, 0::2], distances[:, 1::2]
    shares = [sides.amin(1) / sides.amax(1) for sides in (horizontal, vertical)]
    return (shares[0] * shares[1]).clamp(min=0).sqrt()


def matched_cells(
    boxes: Tensor, squares: Tensor, coder: BoxLinearCoder, finest_stride: int = 8
) -> Tensor:
    """Return the box that every cell learns, ``int64[cells]``; -1 for background.

    A cell learns the smallest of the boxes whose centre is within 1.5 strides, that it lies in, and
    whose farthest side is one to two squares away; the first level has all nearer ones too, the
    last level all farther ones.

    Args:
        boxes: ``float32[M, 4]``.
        squares: ``float32[cells, 4]``, doubling from level to level.
        coder: Encodes boxes as distances.
        finest_stride: Of the first level, in pixels; it doubles per level.
    """
    if not len(boxes):
        return torch.full((len(squares),), -1, dtype=torch.int64, device=squares.device)
    _, level = torch.unique(squares[:, 2] - squares[:, 0], return_inverse=True)
    strides = finest_stride * 2**level
    centres, middles = (_centre(of) for of in (squares, boxes))
    near = (centres[:, None] - middles).abs().amax(-1) < RADIUS * strides[:, None]
    distances = coder.encode(squares[:, None].expand(-1, len(boxes), -1), boxes[None])
    farthest = distances.amax(-1)
    above = (farthest > 1) | (level == 0)[:, None]
    below = (farthest <= 2) | (level == level.amax())[:, None]
    learned = near & (distances.amin(-1) > 0) & above & below
    areas = torch.where(learned, box_area(boxes), torch.inf)
    area, smallest = areas.min(dim=1)
    return torch.where(area.isfinite(), smallest, -1)


def _centre(boxes: Tensor) -> Tensor:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _by_cell(outputs: Tensor) -> Tensor:
    """Return ``Tensor[N, H * W, C]`` of ``Tensor[N, C, H, W]``."""
    return outputs.flatten(2).transpose(1, 2)
