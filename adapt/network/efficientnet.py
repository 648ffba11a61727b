"""How does a published EfficientNet-Lite become a backbone of this tool?

Its convolutions pad as TensorFlow does, those of stride 2 with one pixel more below and on the
right. Here they pad alike on all sides, as those of all backbones. That moves what the network sees
by one pixel at each of five strides, by 31 pixels of the input together, and changes it at the
border alone.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD

INPUT_MEAN, INPUT_STD = 127.0, 128.0  # of its 8-bit input; here images have ImageNet's


def from_efficientnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's state dict from one with the names of EfficientNet-PyTorch.

    The stem takes images as all backbones do. Where it pads, it sees ImageNet's mean colour instead
    of the grey that the published network sees.

    Args:
        state: The published tensors; those of the classifier are left out.

    Raises:
        KeyError: If a tensor is missing.
    """
    converted = dict(_renamed(state))
    weight, mean = converted["features.0.0.weight"], converted["features.0.1.running_mean"]
    factor = 255 * torch.tensor(IMAGE_STD) / INPUT_STD
    offset = (255 * torch.tensor(IMAGE_MEAN) - INPUT_MEAN) / INPUT_STD
    converted["features.0.0.weight"] = weight * factor[:, None, None]
    converted["features.0.1.running_mean"] = mean - (weight.sum((2, 3)) * offset).sum(1)
    return converted


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "features.0.0.weight", state["_conv_stem.weight"]
    yield from _norm(state, "_bn0", "features.0.1")
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("_blocks.")}
    for number in sorted(numbers):
        of, to = f"_blocks.{number}", f"features.{number + 1}.conv"
        place = 0
        if f"{of}._expand_conv.weight" in state:
            yield f"{to}.0.0.weight", state[f"{of}._expand_conv.weight"]
            yield from _norm(state, f"{of}._bn0", f"{to}.0.1")
            place = 1
        yield f"{to}.{place}.0.weight", state[f"{of}._depthwise_conv.weight"]
        yield from _norm(state, f"{of}._bn1", f"{to}.{place}.1")
        yield f"{to}.{place + 1}.weight", state[f"{of}._project_conv.weight"]
        yield from _norm(state, f"{of}._bn2", f"{to}.{place + 2}")


def _norm(state: Mapping[str, Tensor], of: str, to: str) -> Iterator[tuple[str, Tensor]]:
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield f"{to}.{name}", state[f"{of}.{name}"]
