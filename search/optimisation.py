"""How are weights trained, and how are the steps computed?"""

from dataclasses import dataclass
from typing import Literal

from adapt.dataset import steps_per_epoch
from adapt.errors import FORBID_UNKNOWN
from adapt.supernet import Recompute

Amp = Literal["off", "bf16", "fp16"]


def check_positive(name: str, value: int) -> None:
    """Check a field of a recipe.

    Raises:
        ValueError: If it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_not_negative(name: str, value: float) -> None:
    """Check a field of a recipe.

    Raises:
        ValueError: If it is below 0.
    """
    if value < 0:
        raise ValueError(f"{name} must not be negative, got {value}")


@dataclass(frozen=True)
class Optimisation:
    """How weights are trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step, of all processes together.
        accumulate: Parts that a step's batch is divided into, one after the other, to save memory.
            BatchNorm sees a part at a time, so the result is another one.
        optimizer: ``sgd`` or ``adamw``.
        lr: Peak learning rate.
        momentum: Of SGD.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: ``step`` (warm-up, then drops at milestones) or ``one-cycle``.
        warmup_steps: Steps in which the learning rate rises to its peak; at most half of all in
            the ``one-cycle`` schedule.
        warmup_factor: Share of ``lr`` at the first step.
        milestones: Epochs at which the learning rate drops.
        gamma: Factor of each drop.
        clip_norm: Largest L2 norm of the gradient; 0 for no clipping.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    epochs: int = 24
    batch_size: int = 32
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-5
    schedule: Literal["step", "one-cycle"] = "step"
    warmup_steps: int = 500
    warmup_factor: float = 1 / 3
    milestones: tuple[int, ...] = (16, 22)
    gamma: float = 0.1
    clip_norm: float = 35.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            check_positive(name, getattr(self, name))
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate must divide batch_size, got {self.accumulate} and {self.batch_size}"
            )
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        for name in ("momentum", "weight_decay", "warmup_steps", "clip_norm"):
            check_not_negative(name, getattr(self, name))

    def steps_per_epoch(self, images: int) -> int:
        """Return the steps of one pass over ``images`` images."""
        return steps_per_epoch(images, self.batch_size)


@dataclass(frozen=True)
class SearchOptimisation(Optimisation):
    """How the operation parameters of the supernet are trained; an epoch is a pass over trainA."""

    __pydantic_config__ = FORBID_UNKNOWN
    epochs: int = 14
    batch_size: int = 8
    lr: float = 0.02
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (8, 11)


@dataclass(frozen=True)
class ComputeRecipe:
    """How steps are computed; but for ``amp`` and ``sync_batch_norm``, results agree to rounding.

    Attributes:
        amp: Type that backbone, pyramid and heads compute in; what follows them stays in fp32.
        channels_last: Whether feature maps lie channels last in memory.
        recompute: What a search computes again in the backward pass instead of keeping it:
            nothing (``off``), the normalised activations of frozen candidates in architecture steps
            (``norms``), every candidate operation, or every block.
        compile: Whether ``torch.compile`` compiles candidates, pyramid and heads.
        sync_batch_norm: Whether BatchNorm takes its statistics over the batch of all processes.
        prefetch: Batches that every loading process keeps ready.
        checkpoint_minutes: Most minutes between two checkpoints; every epoch ends with one.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    amp: Amp = "off"
    channels_last: bool = True
    recompute: Recompute = "off"
    compile: bool = False
    sync_batch_norm: bool = True
    prefetch: int = 2
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_positive("prefetch", self.prefetch)
        check_not_negative("checkpoint_minutes", self.checkpoint_minutes)

    @property
    def meaning(self) -> dict[str, object]:
        """What changes results by more than rounding."""
        return {"amp": self.amp, "sync_batch_norm": self.sync_batch_norm}
