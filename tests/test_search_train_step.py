import math

import pytest
import torch
from torch import nn

from adapt.errors import AdaptError
from search.recipe.optimisation import Optimisation
from search.train.optimizer import advance, build_optimizer, build_scheduler
from search.train.step import Stepper
from search.train.world import World

ALONE = World.alone()


def stepped(optimisation: Optimisation, gradient: float, steps: int = 1) -> float:
    """Value of a parameter that starts at 1, after steps with this gradient."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([parameter], optimisation)
    stepper = Stepper(optimizer, [parameter], optimisation.clip_norm, "off", ALONE)
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
    schedule = build_scheduler(stepper.optimizer, Optimisation(), 1)
    scale = stepper.scaler.get_scale()
    large = torch.full((1,), 1e38)  # times the scale, it overflows
    stepper.step([(1.0, lambda: (parameter * large).sum())], batch)
    advance(schedule)  # PyTorch would warn, which is an error here
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
        optimisation = Optimisation(lr=0.1, momentum=0, weight_decay=0)
        stepper = Stepper(build_optimizer([parameter], optimisation), [parameter], 0, "off", ALONE)
        stepper.step([(w, lambda: parameter.square().sum()) for w in weights], ([], []))
        return float(parameter.detach())

    assert after([0.25, 0.5, 0.25]) == after([1.0]) == pytest.approx(1 - 0.1 * 2)


def test_sgd_is_momentum_with_an_l2_penalty() -> None:
    optimisation = Optimisation(lr=0.1, momentum=0.9, weight_decay=0.01, clip_norm=0)
    velocity = 2 + 0.01 * 1
    after = 1 - 0.1 * velocity
    velocity = 0.9 * velocity + 2 + 0.01 * after
    assert stepped(optimisation, 2.0, steps=2) == pytest.approx(after - 0.1 * velocity)


def test_adamw_decays_weights_apart_from_the_gradient() -> None:
    optimisation = Optimisation(optimizer="adamw", lr=0.1, weight_decay=0.5)
    # Adam's first step is lr * sign of the gradient.
    assert stepped(optimisation, 2.0) == pytest.approx(1 - 0.1 * 0.5 - 0.1)


@pytest.mark.parametrize(("clip", "moved"), [(0.0, 100.0), (35.0, 35.0), (200.0, 100.0)])
def test_gradient_is_clipped_to_its_norm_and_zero_means_not(clip: float, moved: float) -> None:
    optimisation = Optimisation(lr=1, momentum=0, weight_decay=0, clip_norm=clip)
    assert 1 - stepped(optimisation, 100.0) == pytest.approx(moved)


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
