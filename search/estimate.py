"""How many steps, how much memory and how many hours will a run take?

Nothing is computed: the networks run on PyTorch's meta device, which only knows shapes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import RetinaNet

from adapt.architecture import mobilenet_v2
from adapt.backbone import Backbone
from adapt.detector import build_retinanet
from adapt.images import InputSize
from adapt.supernet import Supernet
from search.finetune import total_steps
from search.plan import SearchPlan
from search.recipe import Recipe

# The rate at which the paper's 1.7 (search) and 3.6 (fine-tuning) GPU-days on an A100 come out.
A100_TFLOPS = 6.5
OPTIMIZER_COPIES = 3  # weight, gradient, momentum


@dataclass(frozen=True)
class StepEstimate:
    """One kind of training step.

    Attributes:
        steps: How often it is taken.
        tflops: Floating point operations of forward and backward, in 1e12.
        memory_gb: Activations kept for the backward pass, weights, gradients and momentum.
    """

    steps: int
    tflops: float
    memory_gb: float

    @property
    def hours(self) -> float:
        """Time on an A100 at the rate of the paper's own runs."""
        return self.steps * self.tflops / A100_TFLOPS / 3600


@dataclass(frozen=True)
class RunEstimate:
    """Steps, memory and time of a run, and how they were estimated."""

    weight: StepEstimate
    arch: StepEstimate
    finetune: StepEstimate
    method: str

    @property
    def memory_gb(self) -> float:
        """The largest step's memory."""
        return max(step.memory_gb for step in (self.weight, self.arch, self.finetune))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        steps = {"weight": self.weight, "arch": self.arch, "finetune": self.finetune}
        described = {
            name: {**asdict(step), "a100_hours": step.hours} for name, step in steps.items()
        }
        return {**described, "memory_gb": self.memory_gb, "method": self.method}


def estimate_run(
    recipe: Recipe, images: int, num_classes: int, limit_steps: int | None = None
) -> RunEstimate:
    """Estimate a search and a fine-tuning.

    Args:
        recipe: The run.
        images: Training images.
        num_classes: Object classes.
        limit_steps: As for the run itself.
    """
    plan = SearchPlan.of(recipe.search, images, limit_steps)
    config = recipe.detector_config(num_classes)
    # Memory at the largest input, time at the usual one.
    usual = recipe.measured_size()
    size, batch = recipe.input.fixed(), recipe.search.weights.batch_size
    share = usual.height * usual.width / (size.height * size.width)
    with torch.device("meta"):
        supernet = Supernet(
            recipe.space.load(),
            mask=recipe.search.mask,
            gate_norm=recipe.search.gate_norm,
            gates=recipe.search.gates,
        )
        searched = build_retinanet(supernet, config)
        derived = build_retinanet(Backbone(mobilenet_v2()), config)
    everything = supernet.architecture_parameters()
    arch = _estimate(searched, plan.arch_steps, size, batch, share, everything)
    supernet.paths = [
        [len(block.kernels) * len(block.expansions) - 1] * block.num_ops
        for block in supernet.space.blocks
    ]
    weights = list(searched.parameters())
    return RunEstimate(
        weight=_estimate(searched, plan.total_steps, size, batch, share, weights),
        arch=arch,
        finetune=_estimate(
            derived,
            total_steps(recipe, images, limit_steps),
            size,
            recipe.finetune.batch_size,
            share,
            list(derived.parameters()),
        ),
        method=(
            f"operations (at {usual.height}x{usual.width}) and saved activations (at "
            f"{size.height}x{size.width}) counted on the meta device (largest sampled path, "
            "MobileNetV2 for the derived network, loss and data loading left out; a backward pass "
            "counts as two forward passes, as one where weights are frozen); hours at "
            f"{A100_TFLOPS} TFLOP/s, the rate that makes the paper's run take the 1.7 and 3.6 "
            "GPU-days it reports on an A100; nothing was measured on a GPU"
        ),
    )


def _estimate(
    model: RetinaNet,
    steps: int,
    size: InputSize,
    batch: int,
    share: float,
    trained: list[nn.Parameter],
) -> StepEstimate:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    images = torch.empty(batch, 3, size.height, size.width, device="meta")
    saved, flops = _count(lambda: _outputs(model.train(), images))
    state = sum(p.numel() for p in model.parameters())
    state += (OPTIMIZER_COPIES - 1) * sum(p.numel() for p in trained)
    passes = 3 if any(p.requires_grad for p in model.head.parameters()) else 2
    return StepEstimate(steps, share * passes * flops / 1e12, (saved + 4 * state) / 1e9)


def _outputs(model: RetinaNet, images: Tensor) -> Tensor:
    features = list(model.backbone(images).values())
    heads: dict[str, Tensor] = model.head(features)
    return torch.stack([output.sum() for output in heads.values()]).sum()


def _count(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """Return (bytes kept for the backward pass, floating point operations of the forward pass).

    PyTorch's counter ignores groups in the backward pass, hence only the forward is counted.
    """
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The tensor is kept so that no other storage gets its address.
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(size for _, size in kept.values()), counter.get_total_flops()
