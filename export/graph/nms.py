"""How does a deployed graph suppress overlapping boxes, with and without NonMaxSuppression?

Both ways return a mask over the candidates, so that the rest of the graph has fixed shapes.
"""

# B images, N candidate boxes, K classes

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

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

    Tensor operations only, for tail ``tensor-nms``. Greedy suppression is the fixed point of
    ``keep = valid * (keep @ M == 0)``, where ``M[i, j]`` is 1 if box ``i`` would remove the
    lower-scored box ``j``. After ``n`` rounds the result is final for every box whose longest chain
    of overlapping boxes, each better than the next, has at most ``n`` links; crowded random
    detections need 5 to 7. The graph cannot stop when nothing changes any more, so it always runs
    ``iterations`` rounds. An even number errs on the safe side: at the end of longer chains a
    duplicate is kept, no detection is lost.

    Args:
        boxes: ``Tensor[B, N, 4]``, corners (x1, y1, x2, y2).
        scores: ``Tensor[B, N]``, sorted in descending order; only the order matters.
        labels: ``Tensor[B, N]``, integers.
        valid: ``Tensor[B, N]``, bool; other boxes are neither kept nor remove any.
        iou_threshold: Largest overlap at which both boxes are kept.
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
    """Return ``Tensor[B, N, N]``, bool: whether box i would remove box j."""
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


@torch.library.custom_op("adapt::greedy_nms_keep", mutates_args=())
def greedy_nms_keep(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    valid: Tensor,
    iou_threshold: float,
    classes: int,
    max_per_class: int,
) -> Tensor:
    """Mark the boxes that greedy per-class non-maximum suppression keeps.

    A custom operator, for tail ``onnx-nms``: PyTorch runs torchvision's suppression, the exporter
    writes ONNX's NonMaxSuppression (:func:`_onnx_greedy_nms_keep`). Its parameters are tensors and
    numbers side by side because an operator takes no other types.

    Args:
        boxes: ``Tensor[B, N, 4]``, corners (x1, y1, x2, y2).
        scores: ``Tensor[B, N]``, positive where ``valid``.
        labels: ``Tensor[B, N]``, integers below ``classes``.
        valid: ``Tensor[B, N]``, bool; other boxes are neither kept nor remove any.
        iou_threshold: Largest overlap at which both boxes are kept.
        classes: Number of classes.
        max_per_class: Largest number of boxes of a class; only ONNX's operator heeds it.

    Returns:
        ``Tensor[B, N]``, bool.
    """
    keep = torch.zeros_like(valid)
    for image, alive in enumerate(valid):
        (rows,) = alive.nonzero(as_tuple=True)
        candidates = (boxes[image, rows], scores[image, rows], labels[image, rows])
        keep[image, rows[batched_nms(*candidates, iou_threshold)]] = True
    return keep


@greedy_nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, *_: object) -> Tensor:
    return torch.empty_like(valid)


def onnx_translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Return what PyTorch's exporter calls to write the custom operator of this module."""
    return {torch.ops.adapt.greedy_nms_keep.default: _onnx_greedy_nms_keep}


def _onnx_greedy_nms_keep(
    boxes: Any,
    scores: Any,
    labels: Any,
    valid: Any,
    iou_threshold: float,
    classes: int,
    max_per_class: int,
) -> Any:
    """Write :func:`greedy_nms_keep`, whose parameters these are, in ONNX operators.

    NonMaxSuppression suppresses within each class, given the score of every box for every class;
    a box scores 0 for all classes but its own. The usual alternative, boxes of each class shifted
    to a place of their own, costs precision. The result ``int64[n, 3]`` (image, class, box) is the
    only tensor whose shape depends on the data.
    """
    import onnxscript

    op: Any = onnxscript.opset20

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    zero = op.Constant(value_float=0.0)
    alive = op.Where(valid, scores, zero)
    class_index = op.Reshape(numbers(*range(classes)), numbers(1, classes, 1))
    is_own_class = op.Equal(op.Unsqueeze(labels, numbers(1)), class_index)
    class_scores = op.Where(is_own_class, op.Unsqueeze(alive, numbers(1)), zero)
    iou, min_score = op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[0.0])
    kept = op.NonMaxSuppression(boxes, class_scores, numbers(max_per_class), iou, min_score)
    image_and_box = op.Gather(kept, numbers(0, 2), axis=1)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(image_and_box, start=0, end=1))
    marked = op.ScatterND(op.Mul(alive, zero), image_and_box, ones)
    return op.Greater(marked, op.Constant(value_float=0.5))
