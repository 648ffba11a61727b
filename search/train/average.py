"""How are the weights of a training averaged over its steps? (an exponential moving average)"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def decay_after(steps: int, largest: float) -> float:
    """Return how much of the average stays when the weights after ``steps`` more steps are added.

    It rises with the steps, as in TensorFlow's ExponentialMovingAverage: with 0.9998 throughout,
    the weights before the first step would be 92 % of the average of a training of 400 steps.
    """
    return min(largest, (1 + steps) / (10 + steps))


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return an average of a training's weights and BatchNorm statistics; it has no steps yet.

    Args:
        model: A detector of the same form; it is copied.
        decay: Largest share of the average that stays at a step.
    """

    def add(average: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
        stays = decay_after(int(steps), decay)
        get_ema_multi_avg_fn(stays)(average, weights, steps)  # type: ignore[no-untyped-call]

    return AveragedModel(model, multi_avg_fn=add, use_buffers=True)
