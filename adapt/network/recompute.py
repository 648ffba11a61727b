"""How do architecture steps save memory? (frozen layers compute activations again)

In an architecture step only alpha and beta learn; the candidates' weights are frozen. PyTorch still
keeps the input of every convolution for the gradient of its weight, which nobody needs. Here a
convolution keeps no feature map, and a BatchNorm its input; that of an activation is computed again
from it in the backward pass. This halves the feature maps that an MBConv keeps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

ACTIVATIONS = (nn.ReLU6, nn.ReLU, nn.Hardswish)


class _FrozenConv(Function):
    """A convolution without bias whose weight is frozen; keeps the shape of its input only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d) -> Tensor:
        kind = x.device.type
        mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else x.dtype
        x, weight = x.to(dtype), conv.weight.to(dtype)
        ctx.conv, ctx.weight, ctx.shape = conv, weight, x.shape
        ctx.layout = (
            torch.channels_last
            if x.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), conv = gradients, ctx.conv
        # Never read: without the weight's gradient, the kernel needs its shape and layout only.
        x = torch.empty(
            ctx.shape,
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=ctx.layout,
        )
        input_gradient, _, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            ctx.weight,
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            (0, 0),
            conv.groups,
            [True, False, False],  # gradients of input, weight, bias
        )
        return input_gradient, None


class _FrozenNorm(Function):
    """BatchNorm by batch statistics without shift, then its activation if any; keeps its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, eps: float, activation: type[nn.Module] | None
    ) -> Tensor:
        out, mean, inverse = torch.native_batch_norm(x, scale, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, scale, mean, inverse)
        ctx.eps, ctx.activation = eps, activation
        if activation is None:
            return out
        if issubclass(activation, nn.Hardswish):
            return F.hardswish(out, inplace=True)
        return out.clamp_(0, 6) if issubclass(activation, nn.ReLU6) else out.clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (gradient,) = gradients
        x, scale, mean, inverse = ctx.saved_tensors
        if ctx.activation:
            variance = inverse.pow(-2) - ctx.eps
            # No scale: one that an activation follows has none, see frozen_forward.
            normalised = F.batch_norm(x, mean, variance, training=False, eps=ctx.eps)
            if issubclass(ctx.activation, nn.Hardswish):
                gradient = torch.ops.aten.hardswish_backward(gradient, normalised)
            elif issubclass(ctx.activation, nn.ReLU6):
                gradient = torch.ops.aten.hardtanh_backward(gradient, normalised, 0.0, 6.0)
            else:
                gradient = torch.ops.aten.threshold_backward(gradient, normalised, 0.0)
        gradients_of = [True, scale is not None, False]  # input, scale, shift
        input_gradient, scale_gradient, _ = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, None, None, mean, inverse, True, ctx.eps, gradients_of
        )
        return input_gradient, scale_gradient if scale is not None else None, None, None


def can_recompute(layers: nn.Module) -> bool:
    """Return whether :func:`frozen_forward` computes what the layers would.

    That is: all weights are frozen, every BatchNorm is a plain one without parameters and running
    statistics, in training mode, and there is no squeeze-excitation.
    """
    norms = [m for m in layers.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    plain = all(
        type(m) is nn.BatchNorm2d and m.training and not (m.affine or m.track_running_stats)
        for m in norms
    )
    chain = not any(isinstance(module, SqueezeExcitation) for module in layers.modules())
    return plain and chain and not any(p.requires_grad for p in layers.parameters())


def frozen_forward(layers: nn.Module, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Run the layers, keeping for the backward pass only what frozen ones need.

    Args:
        layers: The layers of an MBConv for which :func:`can_recompute` holds.
        x: Tensor[N, C, H, W].
        scale: Tensor[], a factor of the result; None for 1.
    """
    kinds = (nn.Conv2d, nn.BatchNorm2d, *ACTIVATIONS)
    flat = [module for module in layers.modules() if isinstance(module, kinds)]
    for layer, following in zip(flat, [*flat[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            x = _FrozenConv.apply(x, layer)
        elif isinstance(layer, nn.BatchNorm2d):
            weight = None
            if following is None and scale is not None:
                weight = scale.repeat(layer.num_features)
            activation = type(following) if isinstance(following, ACTIVATIONS) else None
            x = _FrozenNorm.apply(x, weight, layer.eps, activation)
    return x
