"""How many steps, how much memory and how many hours will a run take? (`--dry-run`)

Nothing is computed: the networks run on PyTorch's meta device, which only knows shapes.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import RetinaNet

from adapt.detector.retinanet import build_detector
from adapt.network.backbone import Backbone
from adapt.network.mixed import Paths, Recompute, Sampled
from adapt.network.operations import ConvOperation
from adapt.network.supernet import Supernet
from search.recipe.optimisation import Optimisation, PathCount
from search.recipe.recipe import Recipe
from search.recipe.schedule import Schedule, SearchSchedule
from search.train.placement import DTYPES

# At this rate the paper's runs take what it reports: 1.7 (search) and 3.6 GPU-days (fine-tuning).
A100_TFLOPS = 6.5
OPTIMIZER_COPIES = 3  # weight, gradient, momentum
PASSES = 3  # of a step that trains everything: a backward pass counts as two forward passes


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
    """Steps, memory and time of a run, and how they were estimated.

    Attributes:
        weight: Weight steps of the search.
        arch: Its architecture steps.
        finetune: Steps of the fine-tuning.
        method: How it was estimated.
        validation: Images that a fine-tuning evaluates, one by one, in all its epochs; None if it
            evaluates none.
    """

    weight: StepEstimate
    arch: StepEstimate
    finetune: StepEstimate
    method: str
    validation: StepEstimate | None = None

    def to_dict(self, *, searches: bool = True) -> dict[str, Any]:
        """Return plain JSON content.

        Args:
            searches: Whether the run searches; what chooses by scores trains no supernet.
        """
        search = {"weight": self.weight, "arch": self.arch} if searches else {}
        steps = {**search, "finetune": self.finetune}
        described = {name: _described(step) for name, step in steps.items()}
        if self.validation:
            described["finetune"]["validation"] = _described(self.validation)
        memory_gb = max(step.memory_gb for step in steps.values())
        return {**described, "memory_gb": memory_gb, "method": self.method}


def _described(step: StepEstimate) -> dict[str, Any]:
    return {**asdict(step), "a100_hours": step.hours}


def estimate_run(
    recipe: Recipe,
    images: int,
    num_classes: int,
    limit_steps: int | None = None,
    val_images: int = 0,
) -> RunEstimate:
    """Estimate a search and a fine-tuning.

    Args:
        recipe: The run.
        images: Training images.
        num_classes: Object classes.
        limit_steps: As for the run itself.
        val_images: Images that a fine-tuning is validated on.
    """
    search, config = recipe.search, recipe.detector_config(num_classes)
    with torch.device("meta"):
        supernet = search.supernet(recipe.space.load())
        searched = build_detector(supernet, config)
        derived = build_detector(Backbone(recipe.source), config)
    schedule = SearchSchedule.of(search, images, limit_steps)
    supernet.recompute = recipe.compute.recompute
    arch_parameters = supernet.architecture_parameters()
    supernet.paths = largest_paths(supernet, search.arch_paths)
    arch = _estimate(recipe, searched, schedule.arch_steps, search.weights, arch_parameters)
    arch_ids = {id(p) for p in arch_parameters}
    weights = [p for p in searched.parameters() if id(p) not in arch_ids]
    supernet.paths = largest_paths(supernet, search.weight_paths)
    weight = _estimate(recipe, searched, schedule.total_steps, search.weights, weights)
    if search.bi_sampling:
        weight = replace(weight, tflops=2 * weight.tflops)
    tuned = Schedule.of_finetuning(recipe.finetune, images, limit_steps)
    trained = list(derived.parameters())
    finetune = _estimate(recipe, derived, tuned.total_steps, recipe.finetune, trained)
    evaluated = val_images * tuned.validations(recipe.finetune.val_epochs)
    validation = _evaluation(finetune, recipe, evaluated, trained) if evaluated else None
    return RunEstimate(weight, arch, finetune, _method(recipe), validation)


def _evaluation(
    step: StepEstimate, recipe: Recipe, images: int, weights: list[nn.Parameter]
) -> StepEstimate:
    """Estimate the forward passes of a fine-tuning's validations from one of its steps."""
    forward = step.tflops / PASSES / recipe.finetune.batch_size
    return StepEstimate(images, forward, 4 * sum(p.numel() for p in weights) / 1e9)


def _method(recipe: Recipe) -> str:
    """Return in one sentence how the numbers came about, for whoever reads them alone."""
    usual, largest = recipe.measured_size(), recipe.input.fixed()
    return (
        f"operations (at {usual.height}x{usual.width}) and saved activations (at "
        f"{largest.height}x{largest.width}) counted on the meta device (largest sampled path, "
        f"{recipe.source.source} for the derived network, one process, loss and data loading left "
        "out; a backward pass counts as two forward passes, as one where weights are frozen, and "
        f"what is computed again as one more); hours at {A100_TFLOPS} TFLOP/s, the rate that makes "
        "the paper's run take the 1.7 and 3.6 GPU-days it reports on an A100; nothing was "
        "measured on a GPU"
    )


def largest_paths(supernet: Supernet, number: PathCount) -> Paths | None:
    """Return the ``number`` largest candidates of every position, as a step may sample them."""
    if number == "all":
        return None

    def largest(candidates: int) -> Sampled:
        return candidates - 1 if number == 1 else tuple(range(candidates)[-number:])

    return [
        [largest(len(block.candidates(0))) for _ in range(block.num_ops)]
        for block in supernet.space.blocks
    ]


def _estimate(
    recipe: Recipe,
    model: RetinaNet,
    steps: int,
    optimisation: Optimisation,
    trained: list[nn.Parameter],
) -> StepEstimate:
    """Estimate one kind of step of a model on the meta device; all other parameters are frozen."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    largest, usual = recipe.input.fixed(), recipe.measured_size()
    dtype = DTYPES.get(recipe.compute.amp, torch.float32)
    model.to(dtype)
    batch = -(-optimisation.batch_size // optimisation.accumulate)
    images = torch.empty(batch, 3, largest.height, largest.width, device="meta", dtype=dtype)
    saved, flops = _count(model.train(), images)
    # Memory at the largest input, time at the usual one.
    pixels = usual.height * usual.width / (largest.height * largest.width)
    share = pixels * optimisation.batch_size / batch
    state = sum(p.numel() for p in model.parameters())
    state += (OPTIMIZER_COPIES - 1) * sum(p.numel() for p in trained)
    passes = PASSES if any(p.requires_grad for p in model.head.parameters()) else 2
    passes += _recompute(model) in ("operation", "block")
    return StepEstimate(steps, share * passes * flops / 1e12, (saved + 4 * state) / 1e9)


def _recompute(model: RetinaNet) -> Recompute:
    body = model.backbone.body
    return body.recompute if isinstance(body, Supernet) else "off"


def _outputs(model: RetinaNet, images: Tensor) -> Tensor:
    features = list(model.backbone(images).values())
    heads: dict[str, Tensor] = model.head(features)
    return torch.stack([output.sum() for output in heads.values()]).sum()


class _KeptStorages:
    """Counts the bytes that the backward pass keeps, every storage once."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, int]] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # The tensor is held so that no other storage gets its address.
        self._kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self._kept.values())


def _count(model: RetinaNet, images: Tensor) -> tuple[int, int]:
    """Return (most bytes kept for the backward pass, floating point operations of the forward).

    PyTorch's counter ignores groups in the backward pass, hence only the forward is counted. A
    part that is computed again keeps its input; while the backward pass is in it, all of it.
    """
    kept, inputs = _KeptStorages(), _KeptStorages()
    inside: list[int] = []  # bytes that each part which is computed again would keep

    def counted(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(x: Tensor, *rest: Any) -> Tensor:
            start = kept.nbytes
            inputs.pack(x)
            out = forward(x, *rest)
            inside.append(kept.nbytes - start)
            return out

        return run

    body, recompute = model.backbone.body, _recompute(model)
    parts = _recomputed_parts(model)
    for module, name in parts:
        setattr(module, name, counted(getattr(module, name)))
    if parts:
        body.recompute = "off"  # a checkpoint would hide its tensors from the count
    try:
        with (
            FlopCounterMode(display=False) as counter,
            saved_tensors_hooks(kept.pack, lambda tensor: tensor),
        ):
            _outputs(model, images)
    finally:
        for module, name in parts:
            delattr(module, name)
        if parts:
            body.recompute = recompute
    memory = kept.nbytes - sum(inside) + max(inside, default=0) + inputs.nbytes
    return memory, counter.get_total_flops()


def _recomputed_parts(model: RetinaNet) -> list[tuple[nn.Module, str]]:
    """Return what is computed again as (module, name of the method)."""
    body = model.backbone.body
    match _recompute(model):
        case "block":
            return [(block, "forward") for block in body.blocks]
        case "operation":
            ops = (module for module in body.blocks.modules() if isinstance(module, ConvOperation))
            return [(op, "branch") for op in ops]
        case _:
            return []
