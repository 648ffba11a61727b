"""Do sums of scores rank networks as their losses do? (Kendall's tau over random networks)"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapt.architecture import Architecture
from adapt.cost.expectation import CostModel
from adapt.space import SearchSpace
from search.derive.chance import noise_deriver
from search.derive.scores import Scores

SHARES = (0.1, 0.9)  # of the way from the cheapest to the most expensive network


@dataclass(frozen=True)
class ScoresCertificate:
    """How well sums of scores rank networks that replace several things at once.

    Attributes:
        tau: Kendall's rank correlation; 1 if every pair is ordered rightly.
        rises: Sum of scores of each network.
        losses: Held-out loss of each, measured, less the teacher's.
        seed: Of the draw.
    """

    tau: float
    rises: tuple[float, ...]
    losses: tuple[float, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def certify_scores(
    scores: Scores,
    loss: Callable[[Architecture], float],
    space: SearchSpace,
    model: CostModel,
    *,
    number: int,
    seed: int = 0,
) -> ScoresCertificate:
    """Compare sums with losses of random networks over the whole range of costs.

    Args:
        scores: Of all choices of the space.
        loss: Returns the held-out loss of a network, as it did for the scores.
        space: The space.
        model: Costs, by which networks are drawn.
        number: Networks.
        seed: Of the draw.
    """
    from scipy.stats import kendalltau

    chance = np.random.default_rng(seed)
    rises, losses = [], []
    for share in np.linspace(*SHARES, number):
        deriver = noise_deriver(model, space, chance)
        budget = deriver.cheapest + share * (deriver.dearest - deriver.cheapest)
        choices = deriver.best(float(budget)).choices
        rises.append(scores.rise(choices))
        losses.append(loss(choices.architecture(space)) - scores.loss)
    tau = float(kendalltau(rises, losses).statistic)
    return ScoresCertificate(tau, tuple(rises), tuple(losses), seed)
