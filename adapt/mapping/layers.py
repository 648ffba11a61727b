"""What do a convolution and the BatchNorm after it compute, and in which order of channels?"""

import torch
from torch import Tensor, nn

from adapt.network.operations import ConvOperation


def projection(op: ConvOperation) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the last convolution of an operation, and the BatchNorm after it."""
    project, norm = op.conv[-2], op.conv[-1]
    assert isinstance(project, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return project, norm


def matrix(conv: nn.Conv2d) -> Tensor:
    """Return the weight of a 1x1 convolution, Tensor[out, in] in double precision."""
    return conv.weight.double().flatten(1)


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a BatchNorm multiplies by and then adds in evaluation mode, Tensor[C] each."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


@torch.no_grad()
def reorder(module: nn.Module, order: Tensor) -> None:
    """Reorder the channels that a layer writes."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim():  # all but the number of batches
            tensor.copy_(tensor[order])


@torch.no_grad()
def reorder_input(conv: nn.Conv2d, order: Tensor) -> None:
    """Let a dense convolution read channels in another order as it read those before."""
    conv.weight.copy_(conv.weight[:, order])
