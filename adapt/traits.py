"""What do all networks around a source share with it, beside what is searched?"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu6", "relu", "hardswish"]


@dataclass(frozen=True)
class Traits:
    """What the pretrained parameters of a source were trained with.

    Attributes:
        stem: Activation after the stem.
        first: Activation inside the fixed first block.
        first_residual: Whether the first block adds its input, if that is as wide as its output.
        blocks: Activation inside the operations of every block; further blocks have the last one.
        norm_eps: What a BatchNorm adds to the variance.
    """

    stem: Activation = "relu6"
    first: Activation = "relu6"
    first_residual: bool = False
    blocks: tuple[Activation, ...] = ("relu6",)
    norm_eps: float = 1e-5

    def activation(self, block: int) -> Activation:
        """Return the activation inside the operations of the block with this index (from 0)."""
        return self.blocks[min(block, len(self.blocks) - 1)]


# Of sources that differ from MobileNetV2.
TRAITS = {
    "efficientnet_lite0": Traits(norm_eps=1e-3),
    "mnasnet1_0": Traits(stem="relu", first="relu", blocks=("relu",)),
    "mobilenet_v3_large": Traits(
        stem="hardswish",
        first="relu",
        first_residual=True,
        blocks=("relu", "relu", "hardswish"),
        norm_eps=1e-3,
    ),
}


def traits_of(source: str) -> Traits:
    """Return the traits of a source; those of MobileNetV2 for an unknown one."""
    return TRAITS.get(source, Traits())
