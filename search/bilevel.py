"""How are weights and architecture searched together? (paper Eq. 3 and 4)"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.artifacts import content_hash, make_folder
from adapt.coco import CocoSplit
from adapt.cost import CostModel
from adapt.dataset import Batch, training_batches
from adapt.detector import build_retinanet
from adapt.errors import AdaptError
from adapt.mapping import map_supernet
from adapt.masks import gate
from adapt.progress import Progress, silent
from adapt.space import SearchSpace
from adapt.supernet import SharedBlock, Supernet
from adapt.weights import source_backbone
from search.checkpoint import resume, save_checkpoint
from search.recipe import Recipe, SearchRecipe
from search.training import (
    build_optimizer,
    build_scheduler,
    detection_loss,
    place,
    training_dataset,
    update,
)

GIGA = 1e9


@dataclass(frozen=True)
class SearchPlan:
    """Steps of a search.

    Attributes:
        steps_per_epoch: Weight steps of one pass over trainA.
        warmup_steps: Steps that train weights alone.
        total_steps: All weight steps.
        arch_every: Weight steps per architecture step after the warm-up.
    """

    steps_per_epoch: int
    warmup_steps: int
    total_steps: int
    arch_every: int

    @classmethod
    def of(cls, recipe: SearchRecipe, images: int, limit_steps: int | None = None) -> "SearchPlan":
        """Plan a search on ``images`` training images; ``limit_steps`` shortens both phases."""
        steps = recipe.weights.steps_per_epoch(images // 2)
        warmup = recipe.warmup_epochs * steps
        alternating = (recipe.weights.epochs - recipe.warmup_epochs) * steps
        if limit_steps is not None:
            warmup = min(warmup, limit_steps)
            alternating = min(alternating, limit_steps * recipe.arch_every)
        return cls(steps, warmup, warmup + alternating, recipe.arch_every)

    def arch_step(self, step: int) -> int | None:
        """Return the number of the architecture step before weight step ``step``, or None."""
        after = step - self.warmup_steps
        return after // self.arch_every if after >= 0 and after % self.arch_every == 0 else None

    @property
    def arch_steps(self) -> int:
        """All architecture steps."""
        return -(-(self.total_steps - self.warmup_steps) // self.arch_every)


def split_halves(split: CocoSplit, seed: int) -> tuple[CocoSplit, CocoSplit]:
    """Divide the training images by shuffled image id into trainA and trainB (Eq. 3).

    Raises:
        AdaptError: If there are fewer than two images.
    """
    if len(split) < 2:
        raise AdaptError(
            f"{split.annotations} has {len(split)} image; a search divides the training images "
            "into two halves and needs at least 2"
        )
    ids = sorted(image.id for image in split.images)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(ids) // 2
    return (
        split.subset([ids[i] for i in order[:half]]),
        split.subset([ids[i] for i in order[half : 2 * half]]),
    )


def build_supernet(recipe: Recipe, space: SearchSpace) -> Supernet:
    """Build a supernet and map the source's parameters onto it, unless asked for scratch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    supernet = Supernet(
        space,
        mask=recipe.search.mask,
        gate_norm=recipe.search.gate_norm,
        gates=recipe.search.gates,
        generator=generator,
    )
    if recipe.init == "imagenet":
        weights = Path(recipe.weights) if recipe.weights else None
        source = source_backbone(space.source, weights)
        map_supernet(source, supernet, noise=recipe.search.mapping_noise, generator=generator)
    return supernet


class BilevelSearch:
    """One search: the supernet in its detector, both optimizers, and the steps between them.

    Args:
        recipe: Numbers of the search.
        train: Training images; they are divided into trainA and trainB.
        cost: Cost of every choice, in MAdds or milliseconds.
        limit_steps: Shorten warm-up and alternation to this many steps each.
    """

    def __init__(
        self, recipe: Recipe, train: CocoSplit, cost: CostModel, limit_steps: int | None = None
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.how = recipe, recipe.search
        self.plan = SearchPlan.of(self.how, len(train), limit_steps)
        space = recipe.space.load()
        self.supernet = build_supernet(recipe, space)
        config = recipe.detector_config(len(train.class_names))
        self.detector = place(build_retinanet(self.supernet, config)).train()
        self.device = next(self.detector.parameters()).device
        self.cost = cost.to(self.device)
        self.halves = [training_dataset(recipe, half) for half in split_halves(train, recipe.seed)]
        self.arch_parameters = self.supernet.architecture_parameters()
        chosen = {id(p) for p in self.arch_parameters}
        self.weights = [p for p in self.detector.parameters() if id(p) not in chosen]
        self.weight_optimizer = build_optimizer(self.weights, self.how.weights)
        self.scheduler = build_scheduler(
            self.weight_optimizer, self.how.weights, self.plan.steps_per_epoch
        )
        self.arch_optimizer = torch.optim.Adam(
            self.arch_parameters,
            lr=self.how.arch_lr,
            betas=self.how.arch_betas,
            weight_decay=self.how.arch_weight_decay,
        )

    @property
    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        return {
            "detector": self.detector,
            "weight_optimizer": self.weight_optimizer,
            "scheduler": self.scheduler,
            "arch_optimizer": self.arch_optimizer,
        }

    def batches(self, half: int, start_step: int) -> Iterator[Batch]:
        """Return the endless batches of trainA (0) or trainB (1) from a step on."""
        return training_batches(
            self.halves[half],
            batch_size=self.how.weights.batch_size,
            seed=self.recipe.seed + half,
            start_step=start_step,
            num_workers=self.recipe.data.workers,
        )

    def weight_step(self, step: int, batch: Batch) -> float:
        """Train the sampled operations on a batch of trainA; alpha and beta are frozen."""
        _train_only(self.weights, self.arch_parameters)
        # The step seeds the sample, so a resumed search draws the same paths.
        generator = torch.Generator().manual_seed(hash((self.recipe.seed, step)) % 2**63)
        uniform = step < self.plan.warmup_steps
        self.supernet.paths = self.supernet.sample_paths(generator, uniform=uniform)
        loss = detection_loss(self.detector, batch, self.device)
        clip = self.how.weights.clip_norm
        value = update(loss, self.weight_optimizer, self.weights, clip, batch)
        self.scheduler.step()
        return value

    def arch_step(self, batch: Batch) -> float:
        """Train alpha and beta on a batch of trainB with all operations (Eq. 4)."""
        _train_only(self.arch_parameters, self.weights)
        self.supernet.paths = None
        loss = detection_loss(self.detector, batch, self.device)
        loss = loss + self.penalty(self.expected_cost())
        clip = self.how.weights.clip_norm
        return update(loss, self.arch_optimizer, self.arch_parameters, clip, batch)

    def expected_cost(self) -> Tensor:
        """Return C of Eq. 4, in G MAdds or milliseconds."""
        cost = self.cost.expected(*self.supernet.probabilities(), form=self.how.cost_form)
        return cost / (GIGA if self.how.cost == "madds" else 1.0)

    def penalty(self, cost: Tensor) -> Tensor:
        """Return the cost term: lambda * C (Eq. 4), or lambda * log10(C) (FNA)."""
        return self.how.cost_weight * (cost if self.how.penalty == "linear" else cost.log10())

    @torch.no_grad()
    def log_entry(self, step: int, weight_loss: float, arch_loss: float | None) -> dict[str, Any]:
        """Return what is worth knowing after an epoch."""
        ops, widths = self.supernet.probabilities()
        return {
            "step": step,
            "weight_loss": weight_loss,
            "arch_loss": arch_loss,
            "lr": self.scheduler.get_last_lr()[0],
            "expected_cost": float(self.expected_cost()),
            "cost_unit": "GMAdds" if self.how.cost == "madds" else "ms",
            "op_entropy": _mean_entropy([p for block in ops for p in block]),
            "width_entropy": _mean_entropy(widths),
            "gate_scale": self._gate_scales(widths),
            "argmax": self.supernet.argmax().to_dict()["blocks"],
        }

    def _gate_scales(self, widths: list[Tensor]) -> list[float]:
        return [
            float(gate(block.masks, p, block.gate_norm).mean())
            for block, p in zip(self.supernet.blocks, widths, strict=True)
            if isinstance(block, SharedBlock)
        ]


def _train_only(trained: list[nn.Parameter], frozen: list[nn.Parameter]) -> None:
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter in frozen:
        parameter.requires_grad_(False)


def _mean_entropy(distributions: list[Tensor]) -> float:
    """Return the mean entropy as a share of the uniform distribution's; 0 is decided."""
    shares = [
        float(-(p * p.clamp_min(1e-12).log()).sum()) / math.log(len(p))
        for p in distributions
        if len(p) > 1
    ]
    return sum(shares) / len(shares) if shares else 0.0


def run_search(
    recipe: Recipe,
    train: CocoSplit,
    cost: CostModel,
    out: Path,
    *,
    progress: Progress = silent,
    limit_steps: int | None = None,
    provenance: dict[str, Any] | None = None,
) -> Path:
    """Search, and write ``supernet.pt`` and ``search.jsonl`` to ``out``.

    A checkpoint is written after every epoch; the same call resumes from it.

    Args:
        recipe: Numbers of the search.
        train: Training images.
        cost: Cost of every choice, in MAdds or milliseconds.
        out: Folder of the results.
        progress: Told after every step.
        limit_steps: Shorten warm-up and alternation to this many steps each.
        provenance: What else identifies the run, such as the hash of the cost table.

    Returns:
        Path of the finished ``supernet.pt``.

    Raises:
        AdaptError: If the loss diverges, or ``out`` holds another run.
    """
    search = BilevelSearch(recipe, train, cost, limit_steps)
    path, plan = out / "supernet.pt", search.plan
    identity = content_hash([recipe.search_hash, limit_steps, provenance])
    fields = {
        "identity": identity,
        "recipe": recipe.to_dict(),
        "space": recipe.space.load().to_dict(),
        "num_classes": len(train.class_names),
        "provenance": provenance or {},
        "total_steps": plan.total_steps,
    }
    make_folder(out)  # before hours of work, not after
    start = resume(path, "supernet", search.parts, identity)
    for step, entry in _steps(search, start, progress):
        save_checkpoint(path, "supernet", search.parts, step=step, **fields)
        _append_log(out / "search.jsonl", entry, first=step <= plan.steps_per_epoch)
    return path


def _steps(
    search: BilevelSearch, start: int, progress: Progress
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Take the steps from ``start`` on; yield (steps taken, log entry) after every epoch."""
    plan = search.plan
    weight_batches = search.batches(0, start)
    done = max(0, -(-(start - plan.warmup_steps) // plan.arch_every))
    arch_batches = search.batches(1, done)
    arch_loss = None
    for step in range(start, plan.total_steps):
        if plan.arch_step(step) is not None:
            arch_loss = search.arch_step(next(arch_batches))
        weight_loss = search.weight_step(step, next(weight_batches))
        progress(step + 1, plan.total_steps, f"loss {weight_loss:.3f}")
        if (step + 1) % plan.steps_per_epoch == 0 or step + 1 == plan.total_steps:
            yield step + 1, search.log_entry(step + 1, weight_loss, arch_loss)


def _append_log(path: Path, entry: dict[str, Any], *, first: bool) -> None:
    with path.open("w" if first else "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
