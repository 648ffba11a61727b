"""How many multiply-adds does any detector take? (counted while it runs, without memory)"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.data.images import InputSize


def counted_madds(model: RetinaNet, size: InputSize) -> int:
    """Return the multiply-adds of backbone, pyramid and heads for one image.

    Those of convolutions and fully connected layers, with one per output for a bias, as Table II
    counts. A search counts :mod:`adapt.cost.units` instead, which are the same numbers for networks
    of MBConvs.

    Args:
        model: The detector, on the meta device, so that nothing is computed.
        size: Of its input.
    """
    total = 0

    def add(module: nn.Module, _: Any, out: Tensor) -> None:
        nonlocal total
        each = module.weight[0].numel()  # type: ignore[index]
        total += out.numel() * (each + (module.bias is not None))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    image = torch.empty(1, 3, size.height, size.width, device="meta")
    model.head(list(model.backbone(image).values()))
    for hook in hooks:
        hook.remove()
    return total
