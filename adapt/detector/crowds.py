"""Which boxes lie on a box around a group, so that nothing is learned there?"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.ops import box_area

ON_CROWD = 0.5  # share of a box that lies on a crowd


def on_crowd(boxes: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Return which boxes lie on a crowd with at least half of their area, ``bool[N]``.

    Args:
        boxes: ``float32[N, 4]``, such as anchors.
        target: Of an image; it may hold ``crowds``, ``float32[M, 4]``.
    """
    crowds = target.get("crowds")
    if crowds is None or not len(crowds):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    first = torch.maximum(crowds[:, None, :2], boxes[:, :2])
    last = torch.minimum(crowds[:, None, 2:], boxes[:, 2:])
    common = (last - first).clamp(min=0).prod(-1)  # [M, N]
    crowded: Tensor = (common >= ON_CROWD * box_area(boxes)).any(dim=0)
    return crowded
