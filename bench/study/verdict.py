"""Is one arm better than another, and how sure is that? (paired differences, interval, p)

A seed is a pair: both arms had the same images, initial heads and batches. An arm is called better
only if the 95 % interval of the mean difference excludes 0 and the sign-flip test has p < 0.05.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

LEVEL = 0.05
MOST_FLIPS = 2**16  # beyond 16 pairs, so many random ones


@dataclass(frozen=True)
class Verdict:
    """The comparison of two arms.

    Attributes:
        better: First arm.
        than: Second arm.
        pairs: Seeds that both have.
        difference: Mean of first less second, in points of AP.
        low: Lower end of the 95 % interval of the mean difference (Student's t).
        high: Its upper end.
        p: Of the two-sided sign-flip test: the share of the assignments of signs to the differences
            whose mean is at least as far from 0.
    """

    better: str
    than: str
    pairs: int
    difference: float
    low: float
    high: float
    p: float

    @property
    def shown(self) -> bool:
        """Whether there is a difference: interval and test agree."""
        return self.p < LEVEL and (self.low > 0 or self.high < 0)

    @property
    def detectable(self) -> float:
        """The smallest mean difference that so many pairs with this scatter could have shown."""
        return (self.high - self.low) / 2

    def sentence(self) -> str:
        """Say what the comparison showed."""
        what = f"{self.difference:+.2f} AP [{self.low:+.2f}, {self.high:+.2f}], p = {self.p:.3f}"
        pairs = f"{self.pairs} pair{'s' * (self.pairs != 1)}"
        if self.shown:
            word = "better" if self.difference > 0 else "worse"
            return f"{self.better} is {word} than {self.than}: {what}, {pairs}"
        if self.pairs < 2:
            return f"{self.better} against {self.than}: not shown, {pairs} cannot show anything"
        least = 2 / 2**self.pairs
        could = (
            f"could have shown {self.detectable:.2f}"
            if least < LEVEL
            else f"cannot show anything (p is {least:.3f} at least)"
        )
        return f"{self.better} against {self.than}: not shown, {what}; {pairs} {could}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {**asdict(self), "shown": self.shown, "sentence": self.sentence()}


def compare_paired(
    first: str, second: str, values: Sequence[float], others: Sequence[float]
) -> Verdict:
    """Compare two arms on the same seeds.

    Args:
        first: Name of the first arm.
        second: Name of the second arm.
        values: AP of the first arm, by seed.
        others: AP of the second arm, by seed.
    """
    differences = np.subtract(values, others).astype(np.float64)
    mean = float(differences.mean())
    half = half_width(differences.tolist())
    p = sign_flip_p(differences.tolist())
    return Verdict(first, second, len(differences), mean, mean - half, mean + half, p)


def half_width(values: Sequence[float]) -> float:
    """Return half the 95 % interval of a mean (Student's t); infinite for one value."""
    from scipy.stats import t

    number = len(values)
    if number < 2:
        return math.inf
    deviation = float(np.std(values, ddof=1))
    return float(t.ppf(1 - LEVEL / 2, number - 1)) * deviation / math.sqrt(number)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the p of the two-sided sign-flip test: of all signs, or of random ones if many."""
    number = len(differences)
    if 2**number <= MOST_FLIPS:
        signs = np.array(list(product((1, -1), repeat=number)))
    else:
        chance = np.random.default_rng(0)
        signs = chance.choice((1, -1), size=(MOST_FLIPS, number))
        signs[0] = 1  # the observed one
    means = np.abs(signs @ np.asarray(differences)) / number
    return float((means >= means[0] * (1 - 1e-12)).mean())
