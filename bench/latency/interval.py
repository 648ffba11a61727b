"""How far does a median depend on the rounds that it was measured in? (bootstrap over rounds)"""

# R rounds, B draws, N calls of all rounds

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
INTERVAL = (0.025, 0.975)
# Calls of a round that are looked at: every n-th by size. A profile has thousands of medians.
MOST_CALLS = 64
Floats = NDArray[np.float64]


def median_interval(
    rounds: Sequence[Sequence[float]], draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the median of all calls.

    Whole rounds are drawn with replacement, not calls: those of a round lie within the same half
    second and meet the same machine, so that thousands of them say little more than one.

    Args:
        rounds: Latencies by round.
        draws: How often rounds are drawn.
        seed: Which ones.
    """
    kept = [_thinned(np.sort(np.asarray(calls, np.float64))) for calls in rounds]
    number = len(kept)
    chance = np.random.default_rng(seed)
    drawn = chance.multinomial(number, np.full(number, 1 / number), size=draws)
    # Of unequal rounds each call that was left out is stood for by one that was kept.
    weight = np.array([len(of) / len(few) for of, few in zip(rounds, kept, strict=True)])
    owner = np.repeat(np.arange(number), [len(few) for few in kept])
    medians = _weighted_medians(np.concatenate(kept), (drawn * weight)[:, owner])
    low, high = np.quantile(medians, INTERVAL).tolist()
    return low, high


def _thinned(ordered: Floats) -> Floats:
    step = -(-len(ordered) // MOST_CALLS)
    return ordered[step // 2 :: step] if step > 1 else ordered


def _weighted_medians(values: Floats, weights: Floats) -> Floats:
    """Return the median of ``float64[N]`` for each row of weights ``float64[B, N]``."""
    order = np.argsort(values)
    ordered, below = values[order], weights[:, order].cumsum(1)
    half = below[:, -1:] / 2
    tiny = 1e-9 * half  # sums of fractions miss the half by a rounding error
    lower, upper = (below >= half - tiny).argmax(1), (below > half + tiny).argmax(1)
    medians: Floats = (ordered[lower] + ordered[upper]) / 2
    return medians
