"""What does each candidate operation compute? (paper Fig. 3)"""

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from adapt.architecture import MBConvShape


class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 with any kernel size.

    Parameter names are those of torchvision's ``InvertedResidual``, so its state dicts fit:
    ``conv`` is expand (left out at expansion 1), depthwise, project, BatchNorm.

    Args:
        shape: Channels, kernel, expansion, stride and whether the input is added.
        affine: Whether BatchNorm has a scale and a shift.
        track_running_stats: Whether BatchNorm keeps running statistics.
    """

    def __init__(
        self, shape: MBConvShape, *, affine: bool = True, track_running_stats: bool = True
    ) -> None:
        super().__init__()
        self.shape = shape
        hidden = shape.c_in * shape.expansion

        def norm(channels: int) -> nn.Module:
            return nn.BatchNorm2d(channels, affine=affine, track_running_stats=track_running_stats)

        layers: list[nn.Module] = []
        if shape.expansion != 1:
            layers.append(
                Conv2dNormActivation(
                    shape.c_in, hidden, kernel_size=1, norm_layer=norm, activation_layer=nn.ReLU6
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
                activation_layer=nn.ReLU6,
            ),
            nn.Conv2d(hidden, shape.c_out, kernel_size=1, bias=False),
            norm(shape.c_out),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor, reach: Tensor | None = None) -> Tensor:
        """Map ``Tensor[N, c_in, H, W]`` to ``Tensor[N, c_out, H', W']``, H' = ceil(H / stride).

        Args:
            x: The input.
            reach: Tensor[c_in], how far each input channel is in use; its ``expansion`` hidden
                channels are scaled with it. None uses all.
        """
        if reach is None:
            out: Tensor = self.conv(x)
        else:
            hidden = self.conv[:-2](x)
            hidden = hidden * reach.repeat_interleave(self.shape.expansion)[:, None, None]
            out = self.conv[-2:](hidden)
        return x + out if self.shape.residual else out


def stem(width: int) -> Conv2dNormActivation:
    """Return the stem: 3x3 convolution with stride 2, BatchNorm, ReLU6."""
    return Conv2dNormActivation(3, width, kernel_size=3, stride=2, activation_layer=nn.ReLU6)


def first_block(stem_width: int, width: int) -> MBConv:
    """Return the fixed first block: kernel 3, expansion 1, stride 1."""
    return MBConv(MBConvShape(stem_width, width, kernel=3, expansion=1, stride=1, residual=False))
