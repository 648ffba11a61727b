"""How do a search and a fine-tuning optimise? (learning rates, paths, penalty, precision)"""

import re
from dataclasses import dataclass, field
from typing import Literal

import torch

from adapt.artifacts import LATER, identity
from adapt.cost.expectation import CostForm
from adapt.data.dataset import steps_per_epoch
from adapt.errors import FORBID_UNKNOWN, AdaptError
from adapt.mapping.pretrained import MappingMode
from adapt.network.masks import GateNorm, Gates, MaskKind
from adapt.network.mixed import Recompute
from adapt.network.supernet import Supernet
from adapt.space import SearchSpace
from search.recipe.budget import Budget, Unit

CostKind = Literal["madds", "latency"]
PathCount = Literal["all"] | int
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
            BatchNorm normalises each part by itself, which changes the result.
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

    def warm_up_doubt(self, name: str, images: int, limit_steps: int | None) -> str:
        """Say that the warm-up is longer than the training; empty if it is not.

        Args:
            name: What the recipe calls this training.
            images: Images of an epoch.
            limit_steps: What the training is cut short to, if it is: that is a trial, of which
                there is nothing to say.
        """
        steps = self.epochs * self.steps_per_epoch(images)
        if limit_steps is not None or self.warmup_steps <= steps:
            return ""
        rises = "rises for half of them instead"
        if self.schedule == "step":
            rises = f"ends before it reaches lr = {self.lr:g}"
        return (
            f"{name}.warmup_steps = {self.warmup_steps} is more than the {steps} steps of the "
            f"training: the learning rate {rises}; lower warmup_steps or raise epochs"
        )


@dataclass(frozen=True)
class SearchOptimisation(Optimisation):
    """How the operation parameters of the supernet are trained; an epoch is a pass over trainA."""

    __pydantic_config__ = FORBID_UNKNOWN
    epochs: int = 14
    batch_size: int = 8
    lr: float = 0.02
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (8, 11)


LEAST_NETWORKS = 4  # of a certificate of scores


@dataclass(frozen=True)
class SearchRecipe:
    """How architecture and weights are searched together (Eq. 3 and 4).

    Attributes:
        weights: Training of the operation parameters.
        warmup_epochs: Epochs that train weights alone, with uniformly sampled operations.
        arch_lr: Learning rate of alpha and beta (Adam, constant).
        arch_betas: Decay rates of Adam's moments.
        arch_weight_decay: L2 penalty on alpha and beta.
        arch_every: Weight steps per architecture step, once both are trained.
        mask: How channels belong to candidate widths (Fig. 2).
        gate_norm: Normalisation of the channel gates; ``none`` is the paper's.
        gates: Where overlapping masks gate: every ``operation`` (a one-hot beta is the narrow
            block), or the output of the ``block`` (Eq. 2 as printed). Other masks gate the output.
        cost: What Eq. 4 penalises: multiply-adds, or latency from a cost table.
        cost_form: Exact expectation, or Eq. 5 to 8 as printed for the searched blocks (plus the
            constant cost of the rest of the detector).
        penalty: ``linear`` is Eq. 4's lambda * C; ``log`` is lambda * log10(C - F), as in FNA. C is
            the cost of the detector in G MAdds or milliseconds, F the part of it that no choice
            changes.
        cost_weight: lambda; where it starts if there is a target. 0.02 is FNA's, for ``log``.
        target: Cost that the arg max network is to end at, such as ``4.0ms`` or ``134.9G``; lambda
            is learned then. Empty keeps lambda fixed.
        target_rate: Rate of the dual ascent: lambda is multiplied by (cost / target) ** rate after
            every architecture step.
        target_range: Least and largest lambda.
        weight_paths: Candidates per position that a weight step trains: 1 as the paper's
            ancestors, more, or ``all``.
        arch_paths: Candidates per position that compete in an architecture step.
        bi_sampling: Whether a weight step trains a second path too, drawn uniformly from the
            candidates the first one left out (TF-NAS), so that every candidate gets trained.
        mapping_noise: Standard deviation of the noise on parameters the source does not have.
        choice: What ``adapt run`` derives networks by: the ``probability`` that a search gives
            them, or ``scores`` of the trained source, which needs no search but
            ``finetune.shared_epochs``. ``joint`` chooses pyramid, heads and input too (see
            :class:`~search.recipe.joint.JointRecipe`), by scores and a race.
        score_images: Images of ``data.val`` at most, evenly spaced, that scores are measured on.
        score_networks: Random networks that certify scores.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    weights: SearchOptimisation = field(default_factory=SearchOptimisation)
    warmup_epochs: int = 8
    arch_lr: float = 3e-4
    arch_betas: tuple[float, float] = (0.5, 0.999)
    arch_weight_decay: float = 1e-3
    arch_every: int = 1
    mask: MaskKind = "non-overlapping"
    gate_norm: GateNorm = "none"
    gates: Gates = "operation"
    cost: CostKind = "madds"
    cost_form: CostForm = "exact"
    penalty: Literal["linear", "log"] = "log"
    cost_weight: float = 0.02
    target: str = ""
    target_rate: float = 0.5
    target_range: tuple[float, float] = (1e-4, 10.0)
    weight_paths: PathCount = 1
    arch_paths: PathCount = "all"
    bi_sampling: bool = False
    mapping_noise: float = 1e-3
    choice: Literal["probability", "scores", "joint"] = field(default="probability", metadata=LATER)
    score_images: int = field(default=32, metadata=LATER)
    score_networks: int = field(default=30, metadata=LATER)

    @property
    def scoring(self) -> tuple[tuple[str, int], ...]:
        """How scores are measured, where it is not as usual."""
        settings, names = identity(self), ("score_images", "score_networks")
        return tuple((name, settings[name]) for name in names if name in settings)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs <= self.weights.epochs:
            raise ValueError(
                f"warmup_epochs must lie in [0, {self.weights.epochs}], got {self.warmup_epochs}"
            )
        for name in ("arch_every", "score_images"):
            check_positive(name, getattr(self, name))
        if self.score_networks < LEAST_NETWORKS:
            raise ValueError(
                f"score_networks must be at least {LEAST_NETWORKS} for a rank correlation, got "
                f"{self.score_networks}"
            )
        if self.mask == "individual" and self.gate_norm != "none":
            raise ValueError(
                f"individual blocks have no gates to normalise, got gate_norm {self.gate_norm!r}; "
                "use 'none'"
            )
        if not all(0 <= beta < 1 for beta in self.arch_betas):
            raise ValueError(f"arch_betas must lie in [0, 1), got {list(self.arch_betas)}")
        for name in ("arch_lr", "arch_weight_decay", "cost_weight", "mapping_noise", "target_rate"):
            check_not_negative(name, getattr(self, name))
        for name in ("weight_paths", "arch_paths"):
            if getattr(self, name) != "all":
                check_positive(name, getattr(self, name))
        if self.bi_sampling and self.weight_paths != 1:
            raise ValueError(
                f"bi_sampling trains two single paths, got weight_paths {self.weight_paths!r}; "
                "use 1"
            )
        least, largest = self.target_range
        if not 0 < least <= largest:
            raise ValueError(f"target_range must be positive and rising, got {least}, {largest}")
        if target := self.parsed_target():
            self._check_target(target.unit)

    def supernet(self, space: SearchSpace, generator: torch.Generator | None = None) -> Supernet:
        """Return a new supernet of a space; the generator draws its alphas."""
        return Supernet(
            space,
            mask=self.mask,
            gate_norm=self.gate_norm,
            gates=self.gates,
            generator=generator,
        )

    def parsed_target(self) -> Budget | None:
        """Return the target, if there is one."""
        return Budget.parse(self.target, "target") if self.target else None

    def _check_target(self, unit: Unit) -> None:
        if unit != ("ms" if self.cost == "latency" else "madds"):
            raise ValueError(
                f"target {self.target!r} does not fit cost {self.cost!r}; a latency is like 4.0ms, "
                "multiply-adds are like 134.9G"
            )
        if self.penalty == "linear" or self.cost_form == "literal":
            raise ValueError(
                f"a target has a penalty of its own and the exact cost, got penalty "
                f"{self.penalty!r} and cost_form {self.cost_form!r}; use 'log' and 'exact'"
            )


@dataclass(frozen=True)
class FinetuneRecipe(Optimisation):
    """How the derived detector is trained.

    Attributes:
        mapping: How pretrained parameters reach it (section III-B). ``paper`` copies the first
            channels; ``principal`` too, but of a source whose channels are sorted by what they
            pass on in training images, here and in the search; ``refit`` is ``principal``, and
            fits the copied projections to the source; ``identity`` keeps the function of a source
            that the detector contains.
        mapping_noise: Standard deviation of the noise on parameters the source does not have.
        val_epochs: Epochs from one evaluation on ``data.val`` to the next; the last epoch is
            evaluated too. 0 evaluates never.
        keep: Which weights are written: those of the ``last`` epoch, or of the one that is
            ``best`` by its AP on ``data.val``.
        ema: Decay of the exponential moving average of the weights over the steps, such as 0.9998;
            the average is evaluated and written then. It is less at first: (1 + t) / (10 + t) at
            step t. 0 has no average.
        patience: Evaluations in a row without a better AP after which the training stops; 0 takes
            all epochs.
        recalibrate: Training images, in whole batches, over which the BatchNorms of the weights
            that are written take their statistics anew; 0 keeps those of the training.
        shared_epochs: Epochs of the source, of whose detector all networks of a run start; 0 starts
            each from the pretrained backbone.
        teacher_weight: Weight of the distance of the pyramid from a teacher's, which is one minus
            the correlation; 0 has no teacher. In a run the teacher is what all networks start from.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    mapping: MappingMode = "paper"
    mapping_noise: float = 1e-3
    val_epochs: int = field(default=0, metadata=LATER)
    keep: Literal["last", "best"] = field(default="last", metadata=LATER)
    ema: float = field(default=0.0, metadata=LATER)
    patience: int = field(default=0, metadata=LATER)
    recalibrate: int = field(default=0, metadata=LATER)
    shared_epochs: int = field(default=0, metadata=LATER)
    teacher_weight: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("val_epochs", "patience", "recalibrate", "shared_epochs")
        for name in (*counts, "teacher_weight"):
            check_not_negative(name, getattr(self, name))
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if not self.val_epochs and (self.keep == "best" or self.patience):
            given = "keep = 'best'" if self.keep == "best" else f"patience = {self.patience}"
            raise ValueError(
                f"{given} goes by the AP on data.val, which val_epochs = 0 never measures; set "
                "val_epochs to 1 or more"
            )

    @property
    def principal(self) -> bool:
        """Whether the source is mapped in its principal axes."""
        return self.mapping in ("principal", "refit")


@dataclass(frozen=True)
class ComputeRecipe:
    """How steps are computed. Only ``amp`` and ``sync_batch_norm`` change more than rounding.

    Attributes:
        amp: Type that backbone, pyramid and heads compute in; what follows them stays in fp32.
        channels_last: Whether feature maps lie channels last in memory; by default they do, but not
            in fp32 on CUDA.
        recompute: What a search computes again in the backward pass instead of keeping it:
            nothing (``off``), the normalised activations of frozen candidates in architecture steps
            (``norms``; every candidate where that does not apply, such as with several processes),
            every candidate ``operation``, or every ``block``.
        compile: Whether ``torch.compile`` compiles candidates, pyramid and heads. Candidates that
            compute ``norms`` again are not compiled.
        sync_batch_norm: Whether BatchNorm takes its statistics over the batch of all processes.
        prefetch: Batches that every loading process keeps ready.
        checkpoint_minutes: Most minutes between two checkpoints; every epoch ends with one.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    amp: Amp = "off"
    channels_last: bool | None = None
    recompute: Recompute = "off"
    compile: bool = False
    sync_batch_norm: bool = True
    prefetch: int = 2
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        check_positive("prefetch", self.prefetch)
        check_not_negative("checkpoint_minutes", self.checkpoint_minutes)

    def memory_format(self, device: str) -> torch.memory_format:
        """Return how feature maps lie in memory on this kind of device."""
        # Channels last took 0.75 s instead of 1.03 s for a MobileNetV2 step at 256x320 and batch 8
        # on one CPU core (PyTorch 2.14). On CUDA it sends depthwise convolutions to cuDNN, which is
        # many times slower than PyTorch's own kernel in fp32, by the reports of others (pytorch
        # issues 34977 and 44943; unverified here).
        usual = device != "cuda" or self.amp != "off"
        last = usual if self.channels_last is None else self.channels_last
        return torch.channels_last if last else torch.contiguous_format

    @property
    def meaning(self) -> dict[str, object]:
        """The fields that change results by more than rounding, for the hash of a run."""
        return {"amp": self.amp, "sync_batch_norm": self.sync_batch_norm}


def parse_paths(text: str | None) -> dict[str, PathCount]:
    """Read ``all``, ``2`` or ``1:all`` as the fields of a search recipe; empty if None.

    Raises:
        AdaptError: If the text has another form.
    """
    if text is None:
        return {}
    match = re.fullmatch(r"(all|[1-9]\d*)(?::(all|[1-9]\d*))?", text)
    if not match:
        raise AdaptError(f"--paths must be like all, 2 or 1:all (WEIGHT:ARCH), got {text!r}")
    weight, arch = match[1], match[2] or match[1]
    counts = {"weight_paths": weight, "arch_paths": arch}
    return {name: "all" if count == "all" else int(count) for name, count in counts.items()}
