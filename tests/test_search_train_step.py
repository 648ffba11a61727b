import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from adapt.errors import AdaptError
from search.recipe.optimisation import FinetuneRecipe, Optimisation, SearchOptimisation
from search.train.step import Stepper, build_optimizer, build_scheduler, divided, step_factor
from search.train.world import World

ALONE = World.alone()

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


def rates(how: Optimisation, steps_per_epoch: int) -> list[float]:
    """Learning rate of every step, as training takes them."""
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], how)
    scheduler = build_scheduler(optimizer, how, steps_per_epoch)
    found = []
    for _ in range(how.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_step_scheduler_applies_the_factor_of_every_step() -> None:
    how = FinetuneRecipe(epochs=24, warmup_steps=5)
    expected = [how.lr * step_factor(how, step, 3) for step in range(72)]
    assert rates(how, 3) == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_cycle_rises_to_its_peak_and_falls(optimizer: str) -> None:
    how = Optimisation(epochs=5, lr=0.3, schedule="one-cycle", optimizer=optimizer)  # type: ignore[arg-type]
    found = rates(how, 10)
    peak = found.index(max(found))
    assert max(found) == pytest.approx(0.3, rel=0.02)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] < 0.01 * found[peak]


def stepped(how: Optimisation, gradient: float, steps: int = 1) -> float:
    """Value of a parameter that starts at 1, after steps with this gradient."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([parameter], how)
    stepper = Stepper(optimizer, [parameter], how.clip_norm, "off", ALONE)
    for _ in range(steps):
        stepper.step([(1.0, lambda: (parameter * gradient).sum())], ([], []))
    return float(parameter.detach())


def test_gradient_that_is_no_number_stops_before_anything_is_updated() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    stepper = Stepper(build_optimizer([parameter], Optimisation()), [parameter], 35, "off", ALONE)
    batch = ([torch.zeros(3, 1, 1)], [{"image_id": torch.tensor(17)}])
    with pytest.raises(AdaptError, match=r"gradient's norm became inf on images \[17\]"):
        stepper.step([(1.0, lambda: parameter.sqrt().sum())], batch)  # finite, but its slope is not
    assert float(parameter.detach()) == 0


def test_fp16_skips_an_overflow_and_stops_where_scaling_less_does_not_help() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    stepper = Stepper(build_optimizer([parameter], Optimisation()), [parameter], 35, "fp16", ALONE)
    batch = ([torch.zeros(3, 1, 1)], [{"image_id": torch.tensor(17)}])
    scale = stepper.scaler.get_scale()
    large = torch.full((1,), 1e38)  # times the scale, it overflows
    stepper.step([(1.0, lambda: (parameter * large).sum())], batch)
    assert float(parameter.detach()) == 0
    assert stepper.scaler.get_scale() == scale / 2
    for _ in range(int(math.log2(stepper.scaler.get_scale()))):
        stepper.step([(1.0, lambda: parameter.sqrt().sum())], batch)
    with pytest.raises(AdaptError, match=r"overflows fp16 .* on images \[17\]"):
        stepper.step([(1.0, lambda: parameter.sqrt().sum())], batch)
    assert float(parameter.detach()) == 0


def test_weighted_losses_make_the_step_of_their_sum() -> None:
    def after(weights: list[float]) -> float:
        parameter = nn.Parameter(torch.ones(1))
        how = Optimisation(lr=0.1, momentum=0, weight_decay=0)
        stepper = Stepper(build_optimizer([parameter], how), [parameter], 0, "off", ALONE)
        stepper.step([(w, lambda: parameter.square().sum()) for w in weights], ([], []))
        return float(parameter.detach())

    assert after([0.25, 0.5, 0.25]) == after([1.0]) == pytest.approx(1 - 0.1 * 2)


@pytest.mark.parametrize(("images", "number"), [(4, 2), (4, 1), (5, 2), (1, 2), (6, 4)])
def test_parts_of_a_batch_hold_every_image_once_and_weigh_by_their_number(
    images: int, number: int
) -> None:
    batch = ([torch.full((3, 1, 1), i) for i in range(images)], [{"n": i} for i in range(images)])
    found = list(divided(batch, number))
    assert len(found) <= number
    assert [image for _, part in found for image in part[0]] == batch[0]
    assert [target for _, part in found for target in part[1]] == batch[1]
    assert [share for share, _ in found] == [len(part[0]) / images for _, part in found]


def test_sgd_is_momentum_with_an_l2_penalty() -> None:
    how = Optimisation(lr=0.1, momentum=0.9, weight_decay=0.01, clip_norm=0)
    velocity = 2 + 0.01 * 1
    after = 1 - 0.1 * velocity
    velocity = 0.9 * velocity + 2 + 0.01 * after
    assert stepped(how, 2.0, steps=2) == pytest.approx(after - 0.1 * velocity)


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    how = Optimisation(optimizer="adamw", lr=0.1, weight_decay=0.5)
    assert stepped(how, 2.0) == pytest.approx(1 - 0.1 * 0.5 - 0.1)  # its first step is lr * sign


@pytest.mark.parametrize(("clip", "moved"), [(0.0, 100.0), (35.0, 35.0), (200.0, 100.0)])
def test_gradient_is_clipped_to_its_norm_and_zero_means_not(clip: float, moved: float) -> None:
    how = Optimisation(lr=1, momentum=0, weight_decay=0, clip_norm=clip)
    assert 1 - stepped(how, 100.0) == pytest.approx(moved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_before_anything_is_updated(value: float) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([parameter], Optimisation())
    stepper = Stepper(optimizer, [parameter], 35, "off", ALONE)
    batch = ([torch.zeros(3, 1, 1)], [{"image_id": torch.tensor(17)}])
    with pytest.raises(AdaptError, match=rf"{value} on images \[17\]; lower the learning rate"):
        stepper.step([(1.0, lambda: (parameter * value).sum())], batch)
    assert float(parameter.detach()) == 1
    assert parameter.grad is None
