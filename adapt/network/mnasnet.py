"""How does torchvision's MnasNet become a backbone of this tool? (by other names)"""

import re
from collections.abc import Mapping

from torch import Tensor

# Layers are numbered with their activations there. Stem and first block stand in the one list of
# layers, the MBConvs in stacks of it.
FIRST_LAYERS = {
    "0": "0.0",  # stem
    "1": "0.1",
    "3": "1.conv.0.0",  # depthwise
    "4": "1.conv.0.1",
    "6": "1.conv.1",  # project
    "7": "1.conv.2",
}
MBCONV_LAYERS = {
    "0": "0.0",  # expand
    "1": "0.1",
    "3": "1.0",  # depthwise
    "4": "1.1",
    "6": "2",  # project
    "7": "3",
}
IN_LIST = re.compile(r"layers\.(\d+)\.(\w+)")
IN_STACK = re.compile(r"layers\.(\d+)\.(\d+)\.layers\.(\d+)\.(\w+)")


def from_mnasnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's state dict from one with the names of torchvision's ``MNASNet``.

    Args:
        state: Its tensors; those behind the last MBConv are left out.
    """
    converted = {}
    matches = [match for name in state if (match := IN_STACK.fullmatch(name))]
    mbconvs = sorted({(int(match[1]), int(match[2])) for match in matches})
    for match in matches:
        number = 2 + mbconvs.index((int(match[1]), int(match[2])))
        place = MBCONV_LAYERS.get(match[3], match[3])
        converted[f"features.{number}.conv.{place}.{match[4]}"] = state[match[0]]
    for name, tensor in state.items():
        match = IN_LIST.fullmatch(name)
        if match and match[1] in FIRST_LAYERS:
            converted[f"features.{FIRST_LAYERS[match[1]]}.{match[2]}"] = tensor
    return converted
