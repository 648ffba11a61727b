"""How does torchvision's ResNet become a backbone of this tool? (by other names)"""

import re
from collections.abc import Mapping

from torch import Tensor

STEM = {"conv1": "0.0", "bn1": "0.1"}
BOTTLENECK = {
    "conv1": "conv.0.0",  # reduce
    "bn1": "conv.0.1",
    "conv2": "conv.1.0",  # 3 x 3
    "bn2": "conv.1.1",
    "conv3": "conv.2",  # expand
    "bn3": "conv.3",
    "downsample.0": "shortcut.0",
    "downsample.1": "shortcut.1",
}
IN_STEM = re.compile(r"(conv1|bn1)\.(\w+)")
IN_STAGE = re.compile(r"layer(\d+)\.(\d+)\.((?:conv|bn)\d|downsample\.\d)\.(\w+)")


def from_resnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's state dict from one with the names of torchvision's ``ResNet``.

    Args:
        state: Its tensors; those of the classifier are left out.

    Raises:
        KeyError: If it is a ResNet of other blocks than bottlenecks.
    """
    matches = [match for name in state if (match := IN_STAGE.fullmatch(name))]
    places = sorted({(int(match[1]), int(match[2])) for match in matches})
    converted = {}
    for match in matches:
        number = 2 + places.index((int(match[1]), int(match[2])))  # after stem and pooling
        converted[f"features.{number}.{BOTTLENECK[match[3]]}.{match[4]}"] = state[match[0]]
    for name, tensor in state.items():
        if match := IN_STEM.fullmatch(name):
            converted[f"features.{STEM[match[1]]}.{match[2]}"] = tensor
    return converted
