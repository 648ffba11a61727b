"""How are weights and architecture trained in turn? (paper Eq. 3 and 4; the steps of a search)"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adapt.cost.expectation import CostModel
from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch, training_batches
from adapt.detector.retinanet import build_detector
from adapt.mapping.pretrained import map_supernet
from adapt.network.mixed import Paths
from adapt.network.supernet import Supernet
from adapt.space import SearchSpace
from search.derive.exact import Deriver
from search.recipe.recipe import Recipe
from search.recipe.schedule import SearchSchedule
from search.supernet.multiplier import Multiplier
from search.train.batches import (
    check_shares,
    divided,
    split_halves,
    training_dataset,
    training_loading,
)
from search.train.checkpoint import RandomState
from search.train.log import EpochMeans
from search.train.optimizer import advance, build_optimizer, build_scheduler
from search.train.placement import place
from search.train.session import Session
from search.train.source import mapped_source
from search.train.step import Stepper, detection_loss

GIGA = 1e9
METHOD = 2  # of searching; 1 took the logarithm of the whole detector's cost in Eq. 4


def build_supernet(recipe: Recipe, space: SearchSpace, train: CocoSplit) -> Supernet:
    """Build a supernet and map the source's parameters onto it, unless asked for scratch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    supernet = recipe.search.supernet(space, generator)
    if recipe.init == "imagenet":
        source = mapped_source(recipe, space.source, train)
        map_supernet(source, supernet, noise=recipe.search.mapping_noise, generator=generator)
    return supernet


class BilevelSearch:
    """One search: the supernet in its detector, both optimizers, and the steps between them.

    Args:
        recipe: How to search.
        train: Training images; they are divided into trainA and trainB.
        cost: Cost of every choice, in MAdds or milliseconds.
        session: The processes that search together, and a limit of their steps.

    Attributes:
        settings: The recipe's ``search``.
        schedule: How many steps there are, and which train the architecture.
        supernet: The supernet, inside ``detector``.
        multiplier: lambda of Eq. 4.
        losses: Losses of the epoch so far.

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
        self.recipe, self.settings, self.world = recipe, recipe.search, session.world
        self.schedule = SearchSchedule.of(self.settings, len(train), session.limit_steps)
        self.supernet = build_supernet(recipe, recipe.space.load(), train)
        config = recipe.detector_config(len(train.class_names))
        detector = build_detector(self.supernet, config)
        self.detector = place(detector, recipe.compute, self.world).train()
        self.cost = cost.to(self.world.device)
        self.halves = [training_dataset(recipe, half) for half in split_halves(train, recipe.seed)]
        check_shares(self.settings.weights, len(self.halves[0]), self.world)
        unchanging = self.cost.unchanging(self.settings.cost_form) / self._unit
        self.multiplier = Multiplier(self.settings, self._target(), unchanging)
        self.losses = EpochMeans("weight_loss", "arch_loss")
        self._build_optimizers()

    def _build_optimizers(self) -> None:
        settings, world, amp = self.settings, self.world, self.recipe.compute.amp
        clip_norm, steps_per_epoch = settings.weights.clip_norm, self.schedule.steps_per_epoch
        self.arch_parameters = self.supernet.architecture_parameters()
        arch_ids = {id(p) for p in self.arch_parameters}
        self.weights = [p for p in self.detector.parameters() if id(p) not in arch_ids]
        weight_optimizer = build_optimizer(self.weights, settings.weights)
        self.lr_schedule = build_scheduler(weight_optimizer, settings.weights, steps_per_epoch)
        arch_optimizer = torch.optim.Adam(
            self.arch_parameters,
            lr=settings.arch_lr,
            betas=settings.arch_betas,
            weight_decay=settings.arch_weight_decay,
        )
        self.weight_stepper = Stepper(weight_optimizer, self.weights, clip_norm, amp, world)
        self.arch_stepper = Stepper(arch_optimizer, self.arch_parameters, clip_norm, amp, world)

    def _target(self) -> float | None:
        """Return the target in G MAdds or milliseconds, if there is one that can be reached."""
        target = self.settings.parsed_target()
        if target is None:
            return None
        deriver = Deriver.of(self.supernet, self.cost.to(torch.device("cpu")))
        target.check_reachable(deriver.cheapest, "target")
        return target.amount / self._unit

    @property
    def _unit(self) -> float:
        """What C of Eq. 4 is counted in, as a multiple of the cost model's unit: 1 G, or 1 ms."""
        return GIGA if self.settings.cost == "madds" else 1.0

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
            "totals": self.losses,
            "random": RandomState(),
        }

    def steps(self, start: int) -> Iterator[float]:
        """Take the steps from ``start`` on; yield the loss of each weight step."""
        schedule = self.schedule
        weight_batches = self.batches(0, start)
        arch_batches = self.batches(1, schedule.arch_steps_in(start))
        for step in range(start, schedule.total_steps):
            number = schedule.arch_step(step)
            if number is not None:
                self.losses.add(arch_loss=self.arch_step(next(arch_batches), number))
            loss = self.weight_step(step, next(weight_batches))
            self.losses.add(weight_loss=loss)
            yield loss

    def batches(self, half: int, start_step: int) -> Iterator[Batch]:
        """Return this process's endless batches of trainA (0) or trainB (1) from a step on."""
        return training_batches(
            self.halves[half],
            batch_size=self.settings.weights.batch_size,
            seed=self.recipe.seed + half,
            start_step=start_step,
            loading=training_loading(self.recipe, self.world),
        )

    def weight_step(self, step: int, batch: Batch) -> float:
        """Train the sampled operations on a batch of trainA; alpha and beta are frozen."""
        _train_only(self.weights, self.arch_parameters)
        paths = self._weight_paths(self._generator("weight", step), step)
        loss = self.weight_stepper.step(self._path_losses(batch, paths), batch)
        advance(self.lr_schedule)
        return loss

    def _weight_paths(self, generator: torch.Generator, step: int) -> list[Paths | None]:
        """Draw the paths of a weight step: uniformly in the warm-up, then by softmax of alpha."""
        if self.settings.weight_paths == "all":
            return [None]
        draw = self.supernet.sample_paths
        uniform = step < self.schedule.warmup_steps
        first = draw(generator, uniform=uniform, number=self.settings.weight_paths)
        if not self.settings.bi_sampling:
            return [first]
        return [first, draw(generator, uniform=True, without=first)]

    def arch_step(self, batch: Batch, step: int = 0) -> float:
        """Train alpha and beta on a batch of trainB (Eq. 4); all weights are frozen.

        Args:
            batch: Images of trainB.
            step: Number of the architecture step.
        """
        _train_only(self.arch_parameters, self.weights)
        paths: Paths | None = None
        number = self.settings.arch_paths
        if number != "all":
            generator = self._generator("arch", step)
            paths = self.supernet.sample_paths(generator, uniform=False, number=number)
        losses = [*self._path_losses(batch, [paths]), (1.0, self._penalty)]
        loss = self.arch_stepper.step(losses, batch)
        self.multiplier.update(self.argmax_cost())
        return loss

    def _generator(self, kind: Literal["weight", "arch"], step: int) -> torch.Generator:
        # The step seeds the sample, so a resumed search and every process draw the same paths.
        key = (self.recipe.seed, step, ("weight", "arch").index(kind))
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        return torch.Generator().manual_seed(seed)

    def _path_losses(
        self, batch: Batch, paths: list[Paths | None]
    ) -> Iterator[tuple[float, Callable[[], Tensor]]]:
        """Yield weight and loss function of every part of a batch on every path."""
        for share, part in divided(batch, self.settings.weights.accumulate):
            for path in paths:
                yield share / len(paths), partial(self._path_loss, part, path)

    def _path_loss(self, part: Batch, path: Paths | None) -> Tensor:
        self.supernet.paths = path
        return detection_loss(self.detector, part, self.world.device)

    def _penalty(self) -> Tensor:
        return self.multiplier.penalty(self.expected_cost(), self.argmax_cost())

    def expected_cost(self) -> Tensor:
        """Return C of Eq. 4, in G MAdds or milliseconds."""
        form = self.settings.cost_form
        return self.cost.expected(*self.supernet.probabilities(), form=form) / self._unit

    @torch.no_grad()
    def argmax_cost(self) -> float:
        """Return what the most probable network costs, in G MAdds or milliseconds."""
        ops, widths = self.supernet.probabilities()
        best_ops = [[_one_hot(p) for p in block] for block in ops]
        best_widths = [_one_hot(p) for p in widths]
        return float(self.cost.expected(best_ops, best_widths)) / self._unit


def _train_only(trained: list[nn.Parameter], frozen: list[nn.Parameter]) -> None:
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter in frozen:
        parameter.requires_grad_(False)


def _one_hot(probabilities: Tensor) -> Tensor:
    """Return the distribution that has decided for the most probable candidate."""
    decided = torch.zeros_like(probabilities)
    decided[probabilities.argmax()] = 1
    return decided
