"""How does one training step change the weights of a detector?"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torchvision.models.detection import RetinaNet

from adapt.artifacts import header, write_json
from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch, DetectionDataset, Loading
from adapt.errors import AdaptError
from search.recipe.optimisation import Amp, Optimisation
from search.recipe.recipe import Recipe
from search.train.world import World


def training_dataset(recipe: Recipe, split: CocoSplit) -> DetectionDataset:
    """Return the training images of a split as the recipe asks for them."""
    data = recipe.data
    return DetectionDataset(split, recipe.input, flip=data.flip, cache_mb=data.cache_mb)


def training_loading(recipe: Recipe, world: World) -> Loading:
    """Return which processes load, and which images of every batch are this process's."""
    return Loading(recipe.data.workers, recipe.compute.prefetch, (world.rank, world.size))


def build_optimizer(parameters: Iterable[nn.Parameter], how: Optimisation) -> Optimizer:
    """Return the optimizer of a recipe."""
    if how.optimizer == "adamw":
        return AdamW(parameters, lr=how.lr, weight_decay=how.weight_decay)
    return SGD(parameters, lr=how.lr, momentum=how.momentum, weight_decay=how.weight_decay)


def build_scheduler(optimizer: Optimizer, how: Optimisation, steps_per_epoch: int) -> LRScheduler:
    """Return the learning rate schedule of a recipe, advanced once per step."""
    if how.schedule == "one-cycle":
        total = how.epochs * steps_per_epoch + 1
        rise = min(0.5, how.warmup_steps / total)
        rise = rise if rise * total > 1 else 0.0  # OneCycleLR divides by rise * total - 1
        return OneCycleLR(
            optimizer, how.lr, total_steps=total, pct_start=rise, cycle_momentum=False
        )
    return LambdaLR(optimizer, lambda step: step_factor(how, step, steps_per_epoch))


def step_factor(how: Optimisation, step: int, steps_per_epoch: int) -> float:
    """Return the share of the peak learning rate at a step of the ``step`` schedule."""
    ramp = min(1.0, step / how.warmup_steps) if how.warmup_steps else 1.0
    warmup = how.warmup_factor + (1 - how.warmup_factor) * ramp
    drops = sum(step >= milestone * steps_per_epoch for milestone in how.milestones)
    return warmup * how.gamma**drops


def detection_loss(model: RetinaNet, batch: Batch, device: torch.device) -> Tensor:
    """Return L_model of Eq. 4: classification plus regression loss of a batch."""
    images, targets = batch
    on_device = [
        {name: t[name].to(device, non_blocking=True) for name in ("boxes", "labels")}
        for t in targets
    ]
    losses = model([image.to(device, non_blocking=True) for image in images], on_device)
    return torch.stack(list(losses.values())).sum()


def divided(batch: Batch, number: int) -> Iterator[tuple[float, Batch]]:
    """Divide a batch for gradient accumulation; yield the share of its images, and the part."""
    images, targets = batch
    size = -(-len(images) // number)
    for start in range(0, len(images), size):
        end = start + size
        part = images[start:end], targets[start:end]
        yield len(part[0]) / len(images), part


def check_shares(how: Optimisation, images: int, world: World) -> None:
    """Check that all processes, and all parts of their shares, get as many images.

    Raises:
        AdaptError: With the numbers.
    """
    share = world.share(min(how.batch_size, images))
    if world.size > 1 and share % how.accumulate:
        raise AdaptError(
            f"the {share} images of each process cannot be taken in {how.accumulate} equal parts; "
            "choose another accumulate, batch_size or number of processes"
        )


class DivergedError(AdaptError):
    """Loss or gradient is not a finite number.

    Attributes:
        image_ids: The images of the batch, of all processes.
    """

    def __init__(self, what: str, image_ids: list[int]) -> None:
        self.image_ids = image_ids
        super().__init__(
            f"{what} on images {image_ids}; lower the learning rate, or look at these images with "
            "`adapt data check`"
        )


@contextmanager
def divergence_saved(path: Path, train: CocoSplit, world: World) -> Iterator[None]:
    """Write the images of a batch on which training diverged to ``path``, and say so."""
    try:
        yield
    except DivergedError as error:
        if world.is_main:
            files = {image.id: str(image.path) for image in train.images}
            rows = [{"id": number, "file": files[number]} for number in error.image_ids]
            write_json(path, header("diverged", reason=str(error), images=rows))
        raise AdaptError(f"{error} (they are listed in {path})") from error


LEAST_SCALE = 1.0  # of a loss in fp16: what overflows without any scaling is no accident


class Stepper:
    """Takes training steps of one optimizer, alone or together with other processes.

    Args:
        optimizer: Updates the parameters.
        parameters: What is trained.
        clip_norm: Largest L2 norm of the gradient; 0 for no clipping.
        amp: ``fp16`` scales the loss, so that small gradients do not vanish.
        world: The processes.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: list[nn.Parameter],
        clip_norm: float,
        amp: Amp,
        world: World,
    ) -> None:
        self.optimizer, self.parameters, self.clip_norm = optimizer, parameters, clip_norm
        self.world = world
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=amp == "fp16")

    def step(self, losses: Iterable[tuple[float, Callable[[], Tensor]]], batch: Batch) -> float:
        """Take one step down the gradient of a weighted sum of losses.

        Args:
            losses: Weights, and what computes each loss; one graph at a time is in memory.
            batch: The images, for the error.

        Returns:
            The weighted sum, averaged over all processes.

        Raises:
            DivergedError: If it, or the gradient, is not finite; no parameter is updated then.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for weight, compute in losses:
            loss = weight * compute()
            total += float(loss.detach())
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        value = self.world.mean(total)
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}", batch)
        self.world.average_gradients(self.parameters)
        self._update(batch)
        return value

    def _update(self, batch: Batch) -> None:
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm or math.inf)
        # With a scaled loss, an overflow only means that the scaler skips the step and scales less.
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm became {norm}", batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise self._diverged("the gradient overflows fp16 however little it is scaled", batch)

    def _diverged(self, what: str, batch: Batch) -> DivergedError:
        self.optimizer.zero_grad(set_to_none=True)
        ids = self.world.gather([int(target["image_id"]) for target in batch[1]])
        return DivergedError(what, ids)
