"""Trained backbones, and images in double precision, for the tests of mapping."""

import torch
from core_parts import shake
from torch import Tensor, nn

from adapt.architecture import Architecture, Block
from adapt.network.backbone import Backbone
from adapt.space import Operation

IMAGES = [
    torch.rand(2, 3, 128, 96, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for n in range(4)
]
UNSEEN = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(9)).double()


@torch.no_grad()
def trained(architecture: Architecture, seed: int) -> Backbone:
    """A backbone whose channels live, and whose statistics are near those of other images."""
    torch.manual_seed(seed)
    backbone = Backbone(architecture).double()
    shake(backbone, seed)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    backbone(IMAGES[0])
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.add_(0.2 * norm.running_var.sqrt() * torch.randn(norm.num_features))
        norm.running_var.mul_(0.5 + torch.rand(norm.num_features))
    return backbone.eval()


def network(*blocks: tuple[int, tuple[Operation, ...]]) -> Architecture:
    built = tuple(Block(2, width, ops) for width, ops in blocks)
    return Architecture("mobilenet_v2", 8, 4, tuple(range(1, len(built) + 1)), built)


@torch.no_grad()
def taps(backbone: Backbone, image: Tensor) -> list[Tensor]:
    """Tensor[positions, C] of every tap."""
    return [tap.transpose(0, 1).flatten(1).T for tap in backbone(image).values()]
