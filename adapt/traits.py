"""What do all networks around a source share with it, beside what is searched?"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu6", "relu", "hardswish"]
Form = Literal["mbconv", "bottleneck"]


@dataclass(frozen=True)
class OperationTraits:
    """What all operations of a block are, beside what is searched.

    Attributes:
        activation: Inside of an operation; of a bottleneck also after its residual.
        form: What an operation consists of: :class:`adapt.network.operations.MBConv` or
            :class:`adapt.network.bottleneck.Bottleneck`.
    """

    activation: Activation = "relu6"
    form: Form = "mbconv"


@dataclass(frozen=True)
class Traits:
    """What the pretrained parameters of a source were trained with.

    Attributes:
        stem: Activation after the stem.
        first: Activation inside the fixed first block.
        first_residual: Whether the first block adds its input, if that is as wide as its output.
        blocks: Activation inside the operations of every block; further blocks have the last one.
        norm_eps: What a BatchNorm adds to the variance.
        form: What an operation of any block consists of.
        stem_kernel: Size of the stem's kernel.
        pooled: Whether max pooling with stride 2 stands in the place of the first block.
    """

    stem: Activation = "relu6"
    first: Activation = "relu6"
    first_residual: bool = False
    blocks: tuple[Activation, ...] = ("relu6",)
    norm_eps: float = 1e-5
    form: Form = "mbconv"
    stem_kernel: int = 3
    pooled: bool = False

    def operations(self, block: int) -> OperationTraits:
        """Return what the operations of the block with this index (from 0) are."""
        return OperationTraits(self.blocks[min(block, len(self.blocks) - 1)], self.form)

    @property
    def stride(self) -> int:
        """Pixels of the input per cell of what the first searched block reads."""
        return 4 if self.pooled else 2


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
    "resnet50": Traits(
        stem="relu", blocks=("relu",), form="bottleneck", stem_kernel=7, pooled=True
    ),
}


def traits_of(source: str) -> Traits:
    """Return the traits of a source; those of MobileNetV2 for an unknown one."""
    return TRAITS.get(source, Traits())
