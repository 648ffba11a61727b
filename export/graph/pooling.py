"""How does a deployed graph pool the features of boxes from the level that fits each? (RoIAlign)"""

# B images, F channels of the pyramid, R boxes of all images, P side of what is pooled

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align


@torch.library.custom_op("adapt::pool_boxes", mutates_args=())
def pool_boxes(
    levels: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    level: Tensor,
    finest_level: int,
    side: int,
    samples: int,
) -> Tensor:
    """Return the features of boxes.

    A custom operator: PyTorch runs torchvision's RoIAlign, the exporter writes ONNX's RoiAlign
    (:func:`_onnx_pool_boxes`), once per level and only of the boxes that are pooled from it. Its
    parameters are tensors and numbers side by side because an operator takes no other types.

    Args:
        levels: float32 ``Tensor[B, F, h, w]`` each, finest first; cells of the next one are twice
            as wide.
        boxes: float32 ``Tensor[R, 4]``, corners (x1, y1, x2, y2) in input pixels.
        image: int64 ``Tensor[R]``, the image of every box.
        level: int64 ``Tensor[R]``, the place of the level that it is pooled from.
        finest_level: l, where cells of the first level are 2**l pixels wide.
        side: P.
        samples: Per side of each of the P x P cells.

    Returns:
        float32 ``Tensor[R, F, P, P]``.
    """
    pooled = boxes.new_zeros(len(boxes), levels[0].shape[1], side, side)
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1)
    for place, features in enumerate(levels):
        (rows,) = (level == place).nonzero(as_tuple=True)
        scale = 2.0 ** -(finest_level + place)
        pooled[rows] = roi_align(features, rois[rows], side, scale, samples)
    return pooled


@pool_boxes.register_fake
def _(levels: Sequence[Tensor], boxes: Tensor, *others: Any) -> Tensor:
    side: int = others[3]
    return boxes.new_empty(boxes.shape[0], levels[0].shape[1], side, side)


def onnx_translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Return what PyTorch's exporter calls to write the custom operator of this module."""
    return {torch.ops.adapt.pool_boxes.default: _onnx_pool_boxes}


def _onnx_pool_boxes(
    levels: Sequence[Any],
    boxes: Any,
    image: Any,
    level: Any,
    finest_level: int,
    side: int,
    samples: int,
) -> Any:
    """Write :func:`pool_boxes`, whose parameters these are, in ONNX operators.

    How many boxes a level has depends on the data; together they are as many as before.
    """
    import onnxscript

    op: Any = onnxscript.opset20

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    rows, pooled = [], []
    for place, features in enumerate(levels):
        here = op.Reshape(op.NonZero(op.Equal(level, numbers(place))), numbers(-1))
        rows.append(here)
        pooled.append(
            op.RoiAlign(
                features,
                op.Gather(boxes, here),
                op.Gather(image, here),
                coordinate_transformation_mode="output_half_pixel",
                output_height=side,
                output_width=side,
                sampling_ratio=samples,
                spatial_scale=2.0 ** -(finest_level + place),
            )
        )
    if len(levels) == 1:
        return pooled[0]
    order = op.Concat(*rows, axis=0)
    # Where each box has got to: the order in which the rows, all different, are sorted.
    _, back = op.TopK(order, op.Shape(order), largest=0)
    return op.Gather(op.Concat(*pooled, axis=0), back)
