"""What do all networks around a source share with it, beside what is searched?"""

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu6", "relu"]


@dataclass(frozen=True)
class Traits:
    """What the pretrained parameters of a source were trained with.

    Attributes:
        activation: After every convolution but the last of an operation.
        norm_eps: What a BatchNorm adds to the variance.
    """

    activation: Activation = "relu6"
    norm_eps: float = 1e-5


# Of sources that differ from MobileNetV2.
TRAITS = {
    "efficientnet_lite0": Traits(norm_eps=1e-3),
    "mnasnet1_0": Traits(activation="relu"),
}


def traits_of(source: str) -> Traits:
    """Return the traits of a source; those of MobileNetV2 for an unknown one."""
    return TRAITS.get(source, Traits())
