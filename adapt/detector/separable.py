"""How do pyramid and heads take fewer multiply-adds? (depthwise separable convolutions)

A 3x3 convolution of F to G channels becomes a 3x3 depthwise one and a 1x1 one: 9 F + F G
multiply-adds per pixel instead of 9 F G. In pyramid and towers nothing stands between the two, as
in EfficientDet's (Tan, Pang, Le, arXiv 1911.09070, section 3); in output layers a ReLU does, as in
SSDLite's (Sandler et al., arXiv 1801.04381, section 6.2). There is no BatchNorm in them: heads are
shared by levels whose statistics differ.
"""

import math

import torch
from torch import nn
from torchvision.models.detection import RetinaNet

NEIGHBOURS_STD = 0.1  # of what a depthwise convolution adds to its input at first
OUTPUT_STD = 0.01  # of the weights of output layers, as torchvision's
POINTWISE = 2  # place of the 1x1 convolution in an output layer, after the depthwise one and ReLU
OUTPUTS = {  # output layers of the heads, by branch
    "classification_head": ("cls_logits",),
    "regression_head": ("bbox_reg", "bbox_ctrness"),
}


def make_separable(model: RetinaNet, depth: int) -> None:
    """Replace the 3x3 convolutions of a detector's pyramid and heads, in place.

    P6 and P7, which are small, stay as they are.

    Args:
        model: The detector, as it was initialised.
        depth: Convolutions before the output layer of each head.
    """
    fpn = model.backbone.fpn
    width = model.backbone.out_channels
    for level in range(len(fpn.layer_blocks)):
        fpn.layer_blocks[level] = _smoothing(width)
    for branch, outputs in OUTPUTS.items():
        head = getattr(model.head, branch)
        head.conv = nn.Sequential(*(_tower_layer(width) for _ in range(depth)))
        for name in outputs:
            if hasattr(head, name):
                setattr(head, name, _output(getattr(head, name)))


def is_separable(model: RetinaNet) -> bool:
    """Return whether :func:`make_separable` made this detector's convolutions separable."""
    branch = getattr(model.head, "classification_head", None)
    return isinstance(getattr(branch, "cls_logits", None), nn.Sequential)


def separable_madds(c_in: int, c_out: int, pixels: int, *, output: bool = False) -> int:
    """Return the multiply-adds of a separable convolution; an output layer has two biases."""
    return ((9 + output) * c_in + (c_in + 1) * c_out) * pixels


def _smoothing(width: int) -> nn.Sequential:
    pointwise = _initial(nn.Conv2d(width, width, 1), math.sqrt(1 / width))
    return nn.Sequential(_depthwise(width), pointwise)


def _tower_layer(width: int) -> nn.Sequential:
    pointwise = _initial(nn.Conv2d(width, width, 1), math.sqrt(2 / width))  # He et al.'s
    return nn.Sequential(_depthwise(width), pointwise, nn.ReLU())


def _output(dense: nn.Conv2d) -> nn.Sequential:
    """Return an output layer that starts with the scale and the bias of a dense one."""
    # A dense one sums nine times as many.
    pointwise = _initial(nn.Conv2d(dense.in_channels, dense.out_channels, 1), 3 * OUTPUT_STD)
    pointwise.bias = dense.bias
    return nn.Sequential(_depthwise(dense.in_channels, bias=True), nn.ReLU(), pointwise)


def _depthwise(width: int, *, bias: bool = False) -> nn.Conv2d:
    """Return a depthwise 3x3 convolution that passes its input on, and a little of the neighbours.

    A random filter per channel would blur what the backbone says before anything is learned: it
    costs 2.6 AP after 408 steps (docs/studies.md).
    """
    conv = _initial(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias), NEIGHBOURS_STD)
    with torch.no_grad():
        conv.weight[:, :, 1, 1] += 1
    return conv


def _initial(conv: nn.Conv2d, std: float) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
