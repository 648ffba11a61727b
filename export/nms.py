"""How does non-maximum suppression run in a graph whose shapes are all fixed?"""

# B images, N candidate boxes

import torch
from torch import Tensor

ITERATIONS = 16


def nms_keep(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    valid: Tensor,
    iou_threshold: float,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Mark the boxes that greedy per-class non-maximum suppression keeps.

    Greedy suppression is the fixed point of ``keep = valid * (keep @ M == 0)``, where
    ``M[i, j]`` is 1 if box ``i`` would remove the lower-scored box ``j``. After ``n`` rounds
    every box is decided whose longest chain of overlapping, better boxes has at most ``n``
    links; crowded random detections need 5 to 7. The graph cannot stop when nothing changes, so
    it always runs ``iterations`` rounds. An even number errs on the safe side: at the end of
    longer chains a duplicate is kept, no detection is lost.

    Args:
        boxes: ``Tensor[B, N, 4]``, corners (x1, y1, x2, y2).
        scores: ``Tensor[B, N]``, sorted in descending order; only the order matters.
        labels: ``Tensor[B, N]``, integers.
        valid: ``Tensor[B, N]``, bool; other boxes neither survive nor suppress.
        iou_threshold: Largest overlap at which both boxes survive.
        iterations: Rounds of the fixed point; even.

    Returns:
        ``Tensor[B, N]``, bool.

    Raises:
        ValueError: If ``iterations`` is odd or not positive.
    """
    if iterations < 2 or iterations % 2:
        raise ValueError(f"iterations must be even and at least 2, got {iterations}")
    removes = _removes(boxes, labels, iou_threshold).to(scores.dtype)
    alive = valid.to(scores.dtype).unsqueeze(1)
    keep = alive
    for _ in range(iterations):
        keep = alive * (torch.matmul(keep, removes) < 0.5).to(scores.dtype)
    return keep.squeeze(1) > 0.5


def _removes(boxes: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Return ``Tensor[B, N, N]``, bool: would box i remove box j?"""
    number = boxes.shape[1]
    better = torch.ones(number, number, dtype=torch.bool, device=boxes.device).triu(1)
    same_class = labels.unsqueeze(2) == labels.unsqueeze(1)
    return (_iou(boxes) > iou_threshold) & same_class & better


def _iou(boxes: Tensor) -> Tensor:
    """Return the overlap of every pair, ``Tensor[B, N, N]``; 0 for two empty boxes."""
    top_left = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    bottom_right = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    union = area[:, :, None] + area[:, None, :] - inter
    # torchvision divides 0 by 0 for two empty boxes and compares NaN: they do not overlap.
    return inter / union.clamp(min=torch.finfo(boxes.dtype).tiny)
