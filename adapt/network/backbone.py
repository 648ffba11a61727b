"""How does an architecture become a backbone that feeds a detector?"""

from collections import OrderedDict

from torch import Tensor, nn

from adapt.architecture import Architecture
from adapt.network.operations import conv_operation, fixed_layers, set_norm_eps

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of red, green and blue from 0 to 1
IMAGE_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """The network of an :class:`Architecture`.

    ``features`` is one flat sequence (stem, first block or pooling, then every operation), as in
    torchvision's MobileNetV2, so that its state dict fits without renaming.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        layers = fixed_layers(architecture)
        self.block_ends: list[int] = []
        for shapes in architecture.layers():
            layers += [conv_operation(shape) for shape in shapes]
            self.block_ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.tap_layers = [self.block_ends[tap - 1] for tap in architecture.taps]
        self.tap_widths = architecture.tap_widths
        set_norm_eps(self, architecture.source)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Return the tapped feature maps, finest first, keyed ``"0"``, ``"1"``, ...

        Args:
            x: Normalised images, ``Tensor[N, 3, H, W]``.
        """
        taps: OrderedDict[str, Tensor] = OrderedDict()
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.tap_layers:
                taps[str(len(taps))] = x
        return taps
