"""Which optimizer and which learning rate at every step does a recipe ask for?"""

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from search.recipe.optimisation import Optimisation


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
