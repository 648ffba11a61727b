"""What does each candidate operation compute? (paper Fig. 3)"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from adapt.architecture import (
    Architecture,
    BottleneckShape,
    MBConvShape,
    Shape,
    first_shape,
    hidden_width,
    squeezed_width,
)
from adapt.space import SearchSpace
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
ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    "relu6": ReLU6,
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
}


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 with any kernel size, with or without squeeze-excitation.

    Parameter names are those of torchvision's ``InvertedResidual``, so its state dicts fit:
    ``conv`` is expand (left out at expansion 1), depthwise, squeeze-excitation if there is one,
    project, BatchNorm.

    Args:
        shape: Channels, geometry, activation and what else it consists of.
        affine: Whether BatchNorm has a scale and a shift.
        track_running_stats: Whether BatchNorm keeps running statistics.
    """

    def __init__(
        self, shape: MBConvShape, *, affine: bool = True, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.hidden
        activation = ACTIVATIONS[shape.activation]
        norm = partial(nn.BatchNorm2d, affine=affine, track_running_stats=track_running_stats)

        layers: list[nn.Module] = []
        if shape.expands:
            layers.append(
                Conv2dNormActivation(
                    shape.c_in, hidden, kernel_size=1, norm_layer=norm, activation_layer=activation
                )
            )
        layers.append(
            Conv2dNormActivation(
                hidden,
                hidden,
                kernel_size=shape.kernel,
                stride=shape.stride,
                groups=hidden,
                norm_layer=norm,
                activation_layer=activation,
            )
        )
        if shape.se:
            layers.append(squeeze_excitation(shape))
        layers += [nn.Conv2d(hidden, shape.c_out, kernel_size=1, bias=False), norm(shape.c_out)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, c_out, H', W']``, H' = ceil(H / stride)."""
        return self.summed(x, self.branch(x))

    def branch(self, x: Tensor, reach: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Return the output of the convolutions, without the residual.

        Args:
            x: The input.
            reach: Tensor[c_in], the probability that each input channel exists; the hidden channels
                of each are multiplied by it, see :func:`hidden_reach`. None for 1.
            scale: Tensor[], a factor of the output; None for 1.
        """
        if reach is None and scale is None:
            plain: Tensor = self.conv(x)
            return plain
        *layers, project, norm = self.conv
        for layer in layers:
            if isinstance(layer, SqueezeExcitation) and reach is not None:
                # Gated before: what does not exist must not be averaged over either.
                x = x * hidden_reach(self.shape, reach)[:, None, None]
                x = x * excitation(layer, x, squeezed_reach(self.shape, reach))
            else:
                x = layer(x)
        if reach is not None and not self.shape.se:
            x = x * hidden_reach(self.shape, reach)[:, None, None]
        return scaled_norm(norm, project(x), scale)

    def summed(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the output of ``conv`` for an input ``x``, with the residual if there is one."""
        return x + out if self.shape.residual else out

    def finished(self, total: Tensor) -> Tensor:
        """Return a sum as it is: no activation follows."""
        return total

    def input_readers(self) -> list[nn.Conv2d]:
        """Return the convolution that reads the input."""
        return _convs(self.conv[0])

    def hidden_readers(self) -> list[nn.Conv2d]:
        """Return the projection, which reads the hidden channels."""
        return _convs(self.conv[-2])


class Bottleneck(nn.Module):
    """Bottleneck of ResNet (He et al., Fig. 5) with any kernel size; that convolution is dense.

    ``conv`` is reduce, k x k (with the stride, as in torchvision), expand, BatchNorm. The input is
    added, projected by ``shortcut`` where there is no residual, and an activation follows: the
    output is not linear in what the convolutions give.

    Args:
        shape: Channels, geometry and activation.
        affine: Whether BatchNorm has a scale and a shift.
        track_running_stats: Whether BatchNorm keeps running statistics.
    """

    def __init__(
        self, shape: BottleneckShape, *, affine: bool = True, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        self.shape = shape
        activation = ACTIVATIONS[shape.activation]
        norm = partial(nn.BatchNorm2d, affine=affine, track_running_stats=track_running_stats)

        def layer(
            c_in: int, c_out: int, kernel: int, stride: int, after: type[nn.Module] | None
        ) -> Conv2dNormActivation:
            return Conv2dNormActivation(
                c_in, c_out, kernel, stride, norm_layer=norm, activation_layer=after
            )

        hidden = shape.hidden
        self.conv = nn.Sequential(
            layer(shape.c_in, hidden, 1, 1, activation),
            layer(hidden, hidden, shape.kernel, shape.stride, activation),
            nn.Conv2d(hidden, shape.c_out, kernel_size=1, bias=False),
            norm(shape.c_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if not shape.residual:
            self.shortcut = layer(shape.c_in, shape.c_out, 1, shape.stride, None)
        self.activation = activation(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, c_out, H', W']``, H' = ceil(H / stride)."""
        return self.finished(self.summed(x, self.branch(x)))

    def branch(self, x: Tensor, reach: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """Return the output of the convolutions of ``conv``.

        Args:
            x: The input.
            reach: Tensor[c_out], the probability that each output channel exists; the hidden
                channels of each are multiplied by it wherever they are read. None for 1.
            scale: Tensor[], a factor of the output; None for 1.
        """
        if reach is None and scale is None:
            plain: Tensor = self.conv(x)
            return plain
        *layers, expand, norm = self.conv
        for layer in layers:
            x = layer(x)
            if reach is not None:
                x = x * hidden_reach(self.shape, reach)[:, None, None]
        return scaled_norm(norm, expand(x), scale)

    def summed(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the output of ``conv`` for an input ``x``, with what is added to it."""
        total: Tensor = self.shortcut(x) + out
        return total

    def finished(self, total: Tensor) -> Tensor:
        """Return the activation of a sum, in place."""
        out: Tensor = self.activation(total)
        return out

    def input_readers(self) -> list[nn.Conv2d]:
        """Return the convolutions that read the input."""
        return _convs(self.conv[0], self.shortcut)

    def hidden_readers(self) -> list[nn.Conv2d]:
        """Return the convolutions that read hidden channels, in order."""
        return _convs(self.conv[1], self.conv[2])


def _convs(*parts: nn.Module) -> list[nn.Conv2d]:
    modules = (module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, nn.Conv2d)]


ConvOperation = MBConv | Bottleneck


def conv_operation(
    shape: Shape, *, affine: bool = True, track_running_stats: bool = True
) -> ConvOperation:
    """Return the operation of a shape; see :class:`MBConv` for the arguments."""
    norms = {"affine": affine, "track_running_stats": track_running_stats}
    return (
        Bottleneck(shape, **norms) if isinstance(shape, BottleneckShape) else MBConv(shape, **norms)
    )


def squeeze_excitation(shape: MBConvShape) -> SqueezeExcitation:
    """Return MobileNetV3's squeeze-excitation of the hidden channels of an MBConv."""
    return SqueezeExcitation(shape.hidden, shape.squeezed, scale_activation=nn.Hardsigmoid)


def excitation(layer: SqueezeExcitation, x: Tensor, squeezed: Tensor) -> Tensor:
    """Return what squeeze-excitation multiplies channels by, Tensor[N, C, 1, 1].

    Args:
        layer: The squeeze-excitation.
        x: Tensor[N, C, H, W].
        squeezed: Tensor[S], by which the channels between its two layers are multiplied.
    """
    inner = layer.activation(layer.fc1(layer.avgpool(x))) * squeezed[:, None, None]
    factors: Tensor = layer.scale_activation(layer.fc2(inner))
    return factors


def hidden_reach(shape: Shape, reach: Tensor) -> Tensor:
    """Return Tensor[hidden], the probability that each hidden channel exists.

    A hidden channel belongs to the last input channel (of a bottleneck output channel) without
    which an operation of fewer ones would not have it: at a whole expansion ``e``, channel ``h`` to
    ``h // e``.

    Args:
        shape: The operation.
        reach: Tensor[c_in], that of each input channel; of a bottleneck Tensor[c_out].
    """
    if shape.expansion == int(shape.expansion):
        return reach.repeat_interleave(int(shape.expansion))
    return reach[_owners(len(reach), partial(hidden_width, expansion=shape.expansion))]


def squeezed_reach(shape: MBConvShape, reach: Tensor) -> Tensor:
    """Return Tensor[squeezed], the same for the channels inside of squeeze-excitation."""

    def width_of(c_in: int) -> int:
        return squeezed_width(hidden_width(c_in, shape.expansion))

    return reach[_owners(len(reach), width_of)]


def _owners(channels: int, width_of: Callable[[int], int]) -> list[int]:
    """Return the one of ``channels`` to which each of ``width_of(channels)`` belongs."""
    widths = [width_of(number) for number in range(1, channels + 1)]
    return [bisect_right(widths, channel) for channel in range(widths[-1])]


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


def stem(width: int, activation: Activation, kernel: int = 3) -> Conv2dNormActivation:
    """Return the stem: a convolution with stride 2, BatchNorm, activation."""
    return Conv2dNormActivation(3, width, kernel, 2, activation_layer=ACTIVATIONS[activation])


def stem_pooling() -> nn.MaxPool2d:
    """Return what follows some stems in the place of a first block: 3x3 max pooling, stride 2."""
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


def fixed_layers(network: Architecture | SearchSpace) -> list[nn.Module]:
    """Return the two layers that no search changes: the stem, then first block or pooling."""
    traits, shape = traits_of(network.source), first_shape(network)
    return [
        stem(network.stem_width, traits.stem, traits.stem_kernel),
        MBConv(shape) if shape else stem_pooling(),
    ]
