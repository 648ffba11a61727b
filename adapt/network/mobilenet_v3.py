"""How does torchvision's MobileNetV3 become a backbone of this tool? (by other names)"""

import re
from collections.abc import Mapping

from torch import Tensor

BLOCK = re.compile(r"features\.(\d+)\.block\.(\d+)\.(.+)")


def from_mobilenet_v3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's state dict from one with the names of torchvision's ``MobileNetV3``.

    There, the projection and its BatchNorm are one layer of a block, the last one; here they are
    two.

    Args:
        state: Its tensors; those behind the last MBConv keep their names, which no backbone has.
    """
    matches = {name: match for name in state if (match := BLOCK.fullmatch(name))}
    last: dict[str, int] = {}
    for match in matches.values():
        last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    converted = {}
    for name, tensor in state.items():
        match = matches.get(name)
        if match:
            place, rest = int(match[2]), match[3]
            if place == last[match[1]]:
                part, _, rest = rest.partition(".")
                place += int(part)
            name = f"features.{match[1]}.conv.{place}.{rest}"
        converted[name] = tensor
    return converted
