"""Which detectors is a cost table certified on? (half by chance, half evenly over the cost)

Networks whose choices are all drawn by chance crowd in the middle: 30 of them span a third of the
cost range of Table I. Fronts and budgets begin at its cheap end, so half of the networks are spread
evenly over the range, the cheapest and the dearest included.
"""

import random

import numpy as np

from adapt.architecture import Choices
from adapt.cost.expectation import CostModel
from adapt.space import SearchSpace
from search.derive.evolve import cost_of, mutated
from search.derive.exact import Deriver

CHANGES = 300  # tried on a random network to bring it near a cost


def sampled(
    space: SearchSpace, model: CostModel, number: int, chance: random.Random
) -> list[Choices]:
    """Return half of the networks evenly over the cost, the cheapest first, the others by chance.

    Args:
        space: What the networks are drawn from.
        model: What every choice of the space costs.
        number: How many networks, at least 4.
        chance: What draws them.
    """
    cheapest, dearest = extremes(space, model)
    even = np.linspace(cost_of(model, cheapest), cost_of(model, dearest), number // 2)
    between = [_near(space, model, cost, chance) for cost in even[1:-1].tolist()]
    by_chance = [random_choices(space, chance) for _ in range(number - number // 2)]
    return [cheapest, *between, dearest, *by_chance]


def random_choices(space: SearchSpace, chance: random.Random) -> Choices:
    """Draw every choice of a space uniformly."""
    ops = [
        [chance.randrange(len(block.candidates(position))) for position in range(block.num_ops)]
        for block in space.blocks
    ]
    return Choices.of(ops, [chance.randrange(len(block.widths)) for block in space.blocks])


def extremes(space: SearchSpace, model: CostModel) -> tuple[Choices, Choices]:
    """Return the cheapest and the dearest network of a space."""
    ops = [[np.zeros(len(b.candidates(p))) for p in range(b.num_ops)] for b in space.blocks]
    widths = [np.zeros(len(block.widths)) for block in space.blocks]

    def cheapest(costs: CostModel) -> Choices:
        deriver = Deriver(costs, ops, widths)
        return deriver.best(deriver.cheapest).choices

    return cheapest(model), cheapest(model.corrected(-1.0, 0.0))


def _near(space: SearchSpace, model: CostModel, cost: float, chance: random.Random) -> Choices:
    """Return a random network, after the changes by chance that brought it nearer to a cost."""

    def distance(choices: Choices) -> float:
        return abs(cost_of(model, choices) - cost)

    network = random_choices(space, chance)
    for _ in range(CHANGES):
        network = min(network, mutated(space, network, chance), key=distance)
    return network
