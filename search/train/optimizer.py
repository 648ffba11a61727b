"""Which optimizer does a recipe ask for, and with which learning rate at each step?"""

import warnings
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from search.recipe.optimisation import Optimisation


def build_optimizer(parameters: Iterable[nn.Parameter], optimisation: Optimisation) -> Optimizer:
    """Return the optimizer of a recipe."""
    lr, decay = optimisation.lr, optimisation.weight_decay
    if optimisation.optimizer == "adamw":
        return AdamW(parameters, lr=lr, weight_decay=decay)
    return SGD(parameters, lr=lr, momentum=optimisation.momentum, weight_decay=decay)


def build_scheduler(
    optimizer: Optimizer, optimisation: Optimisation, steps_per_epoch: int
) -> LRScheduler:
    """Return the learning rate schedule of a recipe, advanced once per step."""
    if optimisation.schedule == "one-cycle":
        total = optimisation.epochs * steps_per_epoch + 1
        rise = min(0.5, optimisation.warmup_steps / total)
        rise = rise if rise * total > 1 else 0.0  # OneCycleLR divides by rise * total - 1
        return OneCycleLR(
            optimizer, optimisation.lr, total_steps=total, pct_start=rise, cycle_momentum=False
        )
    return LambdaLR(optimizer, lambda step: step_factor(optimisation, step, steps_per_epoch))


def advance(schedule: LRScheduler) -> None:
    """Go on to the learning rate of the next step."""
    with warnings.catch_warnings():
        # In fp16 the scale of the loss is found by steps that overflow and are skipped, the first
        # one nearly always: PyTorch takes that for a wrong order of calls.
        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before")
        schedule.step()


def step_factor(optimisation: Optimisation, step: int, steps_per_epoch: int) -> float:
    """Return the share of the peak learning rate at a step of the ``step`` schedule."""
    warmup_steps, first = optimisation.warmup_steps, optimisation.warmup_factor
    ramp = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    warmup = first + (1 - first) * ramp
    drops = sum(step >= milestone * steps_per_epoch for milestone in optimisation.milestones)
    return warmup * optimisation.gamma**drops
