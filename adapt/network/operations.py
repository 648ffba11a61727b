"""What does each candidate operation compute? (paper Fig. 3)"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from adapt.architecture import MBConvShape
from adapt.traits import Activation, traits_of


class _ReLU6(Function):
    """ReLU6 in place that keeps its output, which the next convolution keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clamp_(0, 6)
        ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (out,) = ctx.saved_tensors
        # The output stands in for x: it lies strictly between 0 and 6 exactly where x did, and
        # this is all that hardtanh_backward asks of its second argument.
        gradient: Tensor = torch.ops.aten.hardtanh_backward(gradients[0], out, 0.0, 6.0)
        return gradient


class ReLU6(nn.ReLU6):
    """ReLU6 that saves memory where it trains in place.

    PyTorch's own, in place or not, keeps its input for the backward pass (in place: a copy of it),
    a third of what an MBConv keeps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Limit every value to [0, 6]."""
        eager = self.inplace and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if eager and x.requires_grad:
            out: Tensor = _ReLU6.apply(x)
            return out
        return super().forward(x)


# PyTorch's own ReLU in place keeps its output, as ReLU6 does here.
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu6": ReLU6, "relu": nn.ReLU}


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 with any kernel size.

    Parameter names are those of torchvision's ``InvertedResidual``, so its state dicts fit:
    ``conv`` is expand (left out at expansion 1), depthwise, project, BatchNorm.

    Args:
        shape: Channels, kernel, expansion, stride, activation and whether the input is added.
        affine: Whether BatchNorm has a scale and a shift.
        track_running_stats: Whether BatchNorm keeps running statistics.
    """

    def __init__(
        self, shape: MBConvShape, *, affine: bool = True, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.c_in * shape.expansion
        activation = ACTIVATIONS[shape.activation]

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats)

        layers: list[nn.Module] = []
        if shape.expansion != 1:
            layers.append(
                Conv2dNormActivation(
                    shape.c_in, hidden, kernel_size=1, norm_layer=norm, activation_layer=activation
                )
            )
        layers += [
            Conv2dNormActivation(
                hidden,
                hidden,
                kernel_size=shape.kernel,
                stride=shape.stride,
                groups=hidden,
                norm_layer=norm,
                activation_layer=activation,
            ),
            nn.Conv2d(hidden, shape.c_out, kernel_size=1, bias=False),
            norm(shape.c_out),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, c_out, H', W']``, H' = ceil(H / stride)."""
        out = self.branch(x)
        return x + out if self.shape.residual else out

    def branch(self, x: Tensor, reach: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Return the output of the convolutions, without the residual.

        Args:
            x: The input.
            reach: Tensor[c_in], the probability that each input channel exists; the ``expansion``
                hidden channels of each are multiplied by it. None for 1.
            scale: Tensor[], a factor of the output; None for 1.
        """
        if reach is None and scale is None:
            plain: Tensor = self.conv(x)
            return plain
        *layers, project, norm = self.conv
        for layer in layers:
            x = layer(x)
        if reach is not None:
            x = x * reach.repeat_interleave(self.shape.expansion)[:, None, None]
        return scaled_norm(norm, project(x), scale)


def scaled_norm(norm: nn.Module, x: Tensor, scale: Tensor | None) -> Tensor:
    """Return a BatchNorm's output times a factor (None for 1)."""
    if scale is None:
        plain: Tensor = norm(x)
        return plain
    # Batch statistics alone, no scale: the factor can be the scale. This saves a pass over the
    # feature map, and the backward pass of BatchNorm returns the factor's gradient as well.
    if type(norm) is nn.BatchNorm2d and not (norm.affine or norm.track_running_stats):
        weight = scale.repeat(norm.num_features)  # the kernels read it as contiguous memory
        return F.batch_norm(x, None, None, weight, training=True, eps=norm.eps)
    scaled: Tensor = scale * norm(x)
    return scaled


def set_norm_eps(network: nn.Module, source: str) -> None:
    """Let all BatchNorms add to the variance what those of the pretrained source add."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = traits_of(source).norm_eps


def stem(width: int, activation: Activation) -> Conv2dNormActivation:
    """Return the stem: 3x3 convolution with stride 2, BatchNorm, activation."""
    return Conv2dNormActivation(
        3, width, kernel_size=3, stride=2, activation_layer=ACTIVATIONS[activation]
    )
