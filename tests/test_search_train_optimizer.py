"""Learning rates are those of the paper, at every step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from search.recipe.optimisation import FinetuneRecipe, Optimisation, SearchOptimisation
from search.train.optimizer import build_optimizer, build_scheduler, step_factor

PAPER = SearchOptimisation()
PER_EPOCH = 1000


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 3),
        (250, 2 / 3),
        (500, 1),
        (8 * PER_EPOCH - 1, 1),
        (8 * PER_EPOCH, 0.1),
        (11 * PER_EPOCH - 1, 0.1),
        (11 * PER_EPOCH, 0.01),
        (14 * PER_EPOCH - 1, 0.01),
    ],
)
def test_search_schedule_warms_up_and_drops_at_epochs_8_and_11(step: int, factor: float) -> None:
    assert step_factor(PAPER, step, PER_EPOCH) == pytest.approx(factor)


def test_schedule_without_warm_up_starts_at_its_peak() -> None:
    assert step_factor(replace(PAPER, warmup_steps=0), 0, PER_EPOCH) == 1


def test_warm_up_is_linear() -> None:
    factors = torch.tensor([step_factor(PAPER, step, PER_EPOCH) for step in range(501)])
    assert torch.allclose(factors.diff(), torch.full((500,), 2 / 3 / 500), atol=1e-6)


def rates(optimisation: Optimisation, steps_per_epoch: int) -> list[float]:
    """Learning rate of every step, as training takes them."""
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], optimisation)
    scheduler = build_scheduler(optimizer, optimisation, steps_per_epoch)
    found = []
    for _ in range(optimisation.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_scheduler_applies_the_factor_of_every_step() -> None:
    optimisation = FinetuneRecipe(epochs=24, warmup_steps=5)
    expected = [optimisation.lr * step_factor(optimisation, step, 3) for step in range(72)]
    assert rates(optimisation, 3) == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_rises_to_its_peak_and_falls(optimizer: str) -> None:
    optimisation = Optimisation(epochs=5, lr=0.3, schedule="one-cycle", optimizer=optimizer)  # type: ignore[arg-type]
    found = rates(optimisation, 10)
    peak = found.index(max(found))
    assert max(found) == pytest.approx(0.3, rel=0.02)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 0.01 * found[peak]
