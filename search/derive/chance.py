"""How is a random network drawn that fills a budget? (noise takes the place of scores)"""

import numpy as np
from numpy.typing import NDArray

from adapt.cost.expectation import CostModel
from adapt.space import SearchSpace
from search.derive.exact import Deriver


def noise_deriver(model: CostModel, space: SearchSpace, chance: np.random.Generator) -> Deriver:
    """Return a deriver whose scores are Gumbel noise: its best network is a uniform draw.

    Without a budget it is uniform; within one, the noise decides which choices give way.
    """

    def noise(number: int) -> NDArray[np.float64]:
        return chance.gumbel(size=number)

    ops = [
        [noise(len(block.candidates(position))) for position in range(block.num_ops)]
        for block in space.blocks
    ]
    return Deriver(model, ops, [noise(len(block.widths)) for block in space.blocks])
