"""How are weights and architecture searched together? (paper Eq. 3 and 4)"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adapt.cost.expectation import CostModel
from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch, training_batches
from adapt.detector.retinanet import build_retinanet
from adapt.mapping.pretrained import map_supernet
from adapt.network.masks import gate
from adapt.network.supernet import Paths, SharedBlock, Supernet
from adapt.network.weights import source_backbone
from adapt.space import SearchSpace
from search.derive.exact import Deriver
from search.recipe.budget import Budget
from search.recipe.recipe import Recipe
from search.recipe.schedule import SearchSchedule
from search.supernet.guards import collapse_warnings, mean_entropy
from search.supernet.log import Entry, Totals, named_probabilities
from search.supernet.multiplier import Multiplier
from search.train.batches import (
    check_shares,
    divided,
    split_halves,
    training_dataset,
    training_loading,
)
from search.train.checkpoint import RandomState
from search.train.optimizer import build_optimizer, build_scheduler
from search.train.placement import place
from search.train.session import Session
from search.train.step import Stepper, detection_loss

GIGA = 1e9


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
        session: The processes that search together, and how many steps they may take.

    Raises:
        AdaptError: If no network reaches the target, or a batch cannot be shared out.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: CocoSplit,
        cost: CostModel,
        session: Session | None = None,
    ) -> None:
        torch.manual_seed(recipe.seed)
        session = session or Session()
        self.recipe, self.how, self.world = recipe, recipe.search, session.world
        self.schedule = SearchSchedule.of(self.how, len(train), session.limit_steps)
        self.supernet = build_supernet(recipe, recipe.space.load())
        config = recipe.detector_config(len(train.class_names))
        detector = build_retinanet(self.supernet, config)
        self.detector = place(detector, recipe.compute, self.world).train()
        self.cost = cost.to(self.world.device)
        self.halves = [training_dataset(recipe, half) for half in split_halves(train, recipe.seed)]
        check_shares(self.how.weights, len(self.halves[0]), self.world)
        self.multiplier = Multiplier(self.how, self._target())
        self.totals = Totals()
        self._build_optimizers()

    def _build_optimizers(self) -> None:
        how, world, amp = self.how.weights, self.world, self.recipe.compute.amp
        self.arch_parameters = self.supernet.architecture_parameters()
        chosen = {id(p) for p in self.arch_parameters}
        self.weights = [p for p in self.detector.parameters() if id(p) not in chosen]
        weight_optimizer = build_optimizer(self.weights, how)
        self.lr_schedule = build_scheduler(weight_optimizer, how, self.schedule.steps_per_epoch)
        arch_optimizer = torch.optim.Adam(
            self.arch_parameters,
            lr=self.how.arch_lr,
            betas=self.how.arch_betas,
            weight_decay=self.how.arch_weight_decay,
        )
        self.weight_stepper = Stepper(weight_optimizer, self.weights, how.clip_norm, amp, world)
        self.arch_stepper = Stepper(arch_optimizer, self.arch_parameters, how.clip_norm, amp, world)

    def _target(self) -> float | None:
        """Return the target in G MAdds or milliseconds, if there is one that can be reached."""
        if not self.how.target:
            return None
        target = Budget.parse(self.how.target)
        ops, widths = self.supernet.log_probabilities()
        model = self.cost.to(torch.device("cpu"))
        arrays = [[p.numpy() for p in block] for block in ops], [p.numpy() for p in widths]
        target.check_reachable(Deriver(model, *arrays).cheapest, "target")
        return target.amount / self._unit

    @property
    def _unit(self) -> float:
        return GIGA if self.how.cost == "madds" else 1.0

    @property
    def parts(self) -> dict[str, Any]:
        """Everything a checkpoint holds."""
        return {
            "detector": self.detector,
            "weight_optimizer": self.weight_stepper.optimizer,
            "scheduler": self.lr_schedule,
            "arch_optimizer": self.arch_stepper.optimizer,
            "weight_scaler": self.weight_stepper.scaler,
            "arch_scaler": self.arch_stepper.scaler,
            "multiplier": self.multiplier,
            "totals": self.totals,
            "random": RandomState(),
        }

    def batches(self, half: int, start_step: int) -> Iterator[Batch]:
        """Return this process's endless batches of trainA (0) or trainB (1) from a step on."""
        return training_batches(
            self.halves[half],
            batch_size=self.how.weights.batch_size,
            seed=self.recipe.seed + half,
            start_step=start_step,
            loading=training_loading(self.recipe, self.world),
        )

    def weight_step(self, step: int, batch: Batch) -> float:
        """Train the sampled operations on a batch of trainA; alpha and beta are frozen."""
        _train_only(self.weights, self.arch_parameters)
        paths = self._weight_paths(self._generator("weight", step), step)
        value = self.weight_stepper.step(self._losses(batch, paths), batch)
        self.lr_schedule.step()
        return value

    def _weight_paths(self, generator: torch.Generator, step: int) -> list[Paths | None]:
        """Draw the paths of a weight step: uniformly in the warm-up, then by softmax of alpha."""
        if self.how.weight_paths == "all":
            return [None]
        draw = self.supernet.sample_paths
        uniform = step < self.schedule.warmup_steps
        first = draw(generator, uniform=uniform, number=self.how.weight_paths)
        if not self.how.bi_sampling:
            return [first]
        return [first, draw(generator, uniform=True, without=first)]

    def arch_step(self, batch: Batch, step: int = 0) -> float:
        """Train alpha and beta on a batch of trainB (Eq. 4).

        Args:
            batch: Images of trainB.
            step: Number of the architecture step.
        """
        _train_only(self.arch_parameters, self.weights)
        paths: Paths | None = None
        if self.how.arch_paths != "all":
            generator = self._generator("arch", step)
            paths = self.supernet.sample_paths(generator, uniform=False, number=self.how.arch_paths)
        losses = [*self._losses(batch, [paths]), (1.0, self._penalty)]
        value = self.arch_stepper.step(losses, batch)
        self.multiplier.update(self.argmax_cost())
        return value

    def _generator(self, kind: str, step: int) -> torch.Generator:
        # The step seeds the sample, so a resumed search and every process draw the same paths.
        key = (self.recipe.seed, step, ("weight", "arch").index(kind))
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(seed)

    def _losses(
        self, batch: Batch, paths: list[Paths | None]
    ) -> Iterator[tuple[float, Callable[[], Tensor]]]:
        """Yield the weight of every part of a batch on every path, and what computes its loss."""
        for share, part in divided(batch, self.how.weights.accumulate):
            for path in paths:
                yield share / len(paths), partial(self._loss, part, path)

    def _loss(self, part: Batch, path: Paths | None) -> Tensor:
        self.supernet.paths = path
        return detection_loss(self.detector, part, self._device)

    @property
    def _device(self) -> torch.device:
        return self.world.device

    def _penalty(self) -> Tensor:
        return self.multiplier.penalty(self.expected_cost(), self.argmax_cost())

    @torch.no_grad()
    def argmax_cost(self) -> float:
        """Return what the most probable network costs, in G MAdds or milliseconds."""
        ops, widths = self.supernet.probabilities()
        best = [[one_hot(p) for p in block] for block in ops], [one_hot(p) for p in widths]
        return float(self.cost.expected(*best)) / self._unit

    def expected_cost(self) -> Tensor:
        """Return C of Eq. 4, in G MAdds or milliseconds; exactly if it has a target to meet."""
        form = self.how.cost_form if self.multiplier.target is None else "exact"
        return self.cost.expected(*self.supernet.probabilities(), form=form) / self._unit

    @torch.no_grad()
    def log_entry(self, step: int) -> Entry:
        """Return what is worth knowing after an epoch; losses are means over it."""
        ops, widths = self.supernet.probabilities()
        done = self.schedule.arch_share(step)
        return {
            "step": step,
            "epoch": step / self.schedule.steps_per_epoch,
            **self.totals.means(),
            "lr": self.lr_schedule.get_last_lr()[0],
            "expected_cost": float(self.expected_cost()),
            "argmax_cost": self.argmax_cost(),
            "target": self.multiplier.target,
            "cost_weight": self.multiplier.value,
            "cost_weight_in_force": self.multiplier.in_force(self.argmax_cost()),
            "cost_unit": "GMAdds" if self.how.cost == "madds" else "ms",
            "op_entropy": mean_entropy([p for block in ops for p in block]),
            "width_entropy": mean_entropy(widths),
            "gate_scale": self._gate_scales(widths),
            "argmax": self.supernet.argmax().to_dict()["blocks"],
            "probabilities": named_probabilities(self.supernet.space, ops, widths),
            "warnings": [
                *collapse_warnings(self.supernet.space, ops, widths, done),
                *self._missed(step),
            ],
        }

    def _missed(self, step: int) -> Iterator[str]:
        """Warn at the end of a search whose arg max network costs more than the target."""
        target, reached = self.multiplier.target, self.argmax_cost()
        if target is not None and step == self.schedule.total_steps and reached > target:
            yield (
                f"the search ended at {reached:.4g}, above its target of {target:.4g}; derive with "
                f"--budget {self.how.target}, and search with more epochs or a higher arch_lr"
            )

    def steps(self, start: int) -> Iterator[float]:
        """Take the steps from ``start`` on; yield the loss of each weight step."""
        schedule = self.schedule
        weight_batches = self.batches(0, start)
        done = max(0, -(-(start - schedule.warmup_steps) // schedule.arch_every))
        arch_batches = self.batches(1, done)
        for step in range(start, schedule.total_steps):
            number = schedule.arch_step(step)
            if number is not None:
                self.totals.add("arch_loss", self.arch_step(next(arch_batches), number))
            loss = self.weight_step(step, next(weight_batches))
            self.totals.add("weight_loss", loss)
            yield loss

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


def one_hot(probabilities: Tensor) -> Tensor:
    """Return the distribution that has decided for the most probable candidate."""
    decided = torch.zeros_like(probabilities)
    decided[probabilities.argmax()] = 1
    return decided
