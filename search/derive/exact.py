"""Which network of a search is the most probable one that costs no more than a budget?

Exact: the score (sum of log probabilities) and the cost are sums along a chain of blocks, coupled
by their widths alone. A multiplier that prices cost turns the budget into a bound on what any rest
of the chain can still bring; dynamic programming over (block, width) keeps every partial network
that is neither dominated nor bounded below the best one known.
"""

# K widths of a block, I widths of the block before it, L later operations, M choices of a block

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.architecture import Choices
from adapt.cost.expectation import CostModel
from adapt.errors import AdaptError
from search.recipe.budget import ROUNDING

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Derived:
    """A network within a budget.

    Attributes:
        choices: The network.
        cost: What it costs, as the cost model counts.
        score: Sum of the log probabilities of its choices.
    """

    choices: Choices
    cost: float
    score: float


@dataclass(frozen=True)
class _Items:
    """All useful ways to fill a block, for one width before it and one of its own."""

    cost: Floats
    score: Floats
    ops: Ints  # [M, 1 + L]


class Deriver:
    """Derives networks from one search.

    Args:
        model: What every choice costs.
        ops: Log probabilities per block and position, Tensor[O] each.
        widths: Log probabilities per block, Tensor[K] each.
    """

    def __init__(
        self, model: CostModel, ops: Sequence[Sequence[Floats]], widths: Sequence[Floats]
    ) -> None:
        self._fixed = model.fixed
        self._blocks = [
            _block_items(
                model.first[number].numpy(),
                model.later[number].numpy(),
                model.taps[number].numpy(),
                ops[number],
                widths[number],
            )
            for number in range(len(widths))
        ]
        self._least = self._rests(self._values(lambda items: -items.cost))  # negative costs

    @property
    def cheapest(self) -> float:
        """The lowest cost that any network has."""
        return self._fixed - float(self._least[0][0])

    @property
    def dearest(self) -> float:
        """The cost of the network of the highest score: a larger budget changes nothing."""
        return self._fixed + self._chain(0.0).cost

    def best(self, budget: float) -> Derived:
        """Return the network of the highest score that costs no more than ``budget``.

        Raises:
            AdaptError: If none does.
        """
        left = (budget - self._fixed) * (1 + ROUNDING)
        if -float(self._least[0][0]) > left:
            raise AdaptError(
                f"no network costs {budget:.6g} or less, the cheapest costs {self.cheapest:.6g}; "
                "raise the budget"
            )
        price, known = self._price(left)
        return self._search(left, price, known)

    def front(self, number: int) -> list[Derived]:
        """Return the best networks of budgets from the cheapest to that of the highest score.

        Args:
            number: Budgets, spaced evenly in the logarithm of the cost; several may have the same
                best network, which is returned once.
        """
        budgets = np.geomspace(self.cheapest, max(self.dearest, self.cheapest), number)
        found = [self.best(float(budget)) for budget in budgets]
        return list({one.choices: one for one in found}.values())

    def _price(self, left: float) -> tuple[float, Derived]:
        """Return the price of cost at which the best network just fits, and a network that fits."""
        free = self._chain(0.0)
        if free.cost <= left:
            return 0.0, free
        low, high = 0.0, 1.0 / max(abs(left), 1e-300)
        fits = self._chain(high)
        while fits.cost > left:
            low, high = high, high * 4
            fits = self._chain(high)
        for _ in range(60):
            middle = (low + high) / 2
            found = self._chain(middle)
            if found.cost <= left:
                high, fits = middle, found if found.score > fits.score else fits
            else:
                low = middle
        return high, fits

    def _values(self, value: Callable[[_Items], Floats]) -> list[list[list[float]]]:
        """Return the largest value of a block's items, per block, width before it and width."""
        return [
            [[float(value(items).max()) for items in row] for row in block]
            for block in self._blocks
        ]

    def _rests(self, values: list[list[list[float]]]) -> list[Floats]:
        """Return the most that all blocks from each one on can bring, by the width before it."""
        rest = np.zeros(len(values[-1][0]))
        rests = [rest]
        for block in reversed(values):
            rest = (np.array(block) + rest).max(1)
            rests.insert(0, rest)
        return rests

    def _chain(self, price: float) -> Derived:
        """Return the network with the highest score less priced cost, without the fixed cost."""
        values = self._values(lambda items: _priced(items, price))
        rests = self._rests(values)
        width, ops, widths, cost, score = 0, [], [], 0.0, 0.0
        for number, block in enumerate(self._blocks):
            after = int((np.array(values[number][width]) + rests[number + 1]).argmax())
            items = block[width][after]
            best = int(_priced(items, price).argmax())
            ops.append(tuple(map(int, items.ops[best])))
            widths.append(after)
            cost, score = cost + float(items.cost[best]), score + float(items.score[best])
            width = after
        return Derived(Choices(tuple(ops), tuple(widths)), cost, score)

    def _search(self, left: float, price: float, known: Derived) -> Derived:
        """Keep all partial networks that may still beat a known one, block by block."""
        values = self._values(lambda items: _priced(items, price))
        rests = self._rests(values)
        needed = known.score - price * left - 1e-9 * (1 + abs(known.score))
        fronts = [_Front.start()]
        history = []
        for number, block in enumerate(self._blocks):
            following = []
            for after in range(len(block[0])):
                parts = [front.extended(block[w][after], w) for w, front in enumerate(fronts)]
                joined = _Front.join(parts)
                fits = joined.cost <= left + self._least[number + 1][after]
                bound = joined.score - price * joined.cost + rests[number + 1][after]
                following.append(joined.chosen(fits & (bound >= needed)).pruned())
            history.append(following)
            fronts = following
        return self._trace(history)

    def _trace(self, history: "list[list[_Front]]") -> Derived:
        last = history[-1]
        width = max(range(len(last)), key=lambda w: last[w].score.max(initial=-np.inf))
        state = int(last[width].score.argmax())
        cost, score = float(last[width].cost[state]), float(last[width].score[state])
        ops: list[tuple[int, ...]] = []
        widths: list[int] = []
        for number in range(len(history) - 1, -1, -1):
            front = history[number][width]
            before, item = int(front.width[state]), int(front.item[state])
            ops.insert(0, tuple(map(int, self._blocks[number][before][width].ops[item])))
            widths.insert(0, width)
            state, width = int(front.state[state]), before
        return Derived(Choices(tuple(ops), tuple(widths)), self._fixed + cost, score)


@dataclass(frozen=True)
class _Front:
    """Partial networks that end in one width, and what each was made from."""

    cost: Floats
    score: Floats
    width: Ints  # of the block before
    state: Ints  # in the front of that width
    item: Ints  # of the block

    @classmethod
    def start(cls) -> "_Front":
        zero, none = np.zeros(1), np.zeros(1, np.int64)
        return cls(zero, zero, none, none, none)

    @classmethod
    def join(cls, fronts: "Sequence[_Front]") -> "_Front":
        names = ("cost", "score", "width", "state", "item")
        return cls(*(np.concatenate([getattr(f, name) for f in fronts]) for name in names))

    def extended(self, items: _Items, width: int) -> "_Front":
        """Continue every partial network with every way to fill the next block."""
        states, number = np.divmod(np.arange(len(self.cost) * len(items.cost)), len(items.cost))
        return _Front(
            self.cost[states] + items.cost[number],
            self.score[states] + items.score[number],
            np.full(len(states), width),
            states,
            number,
        )

    def chosen(self, keep: NDArray[np.bool_] | Ints) -> "_Front":
        return _Front(
            self.cost[keep], self.score[keep], self.width[keep], self.state[keep], self.item[keep]
        )

    def pruned(self) -> "_Front":
        return self.chosen(pareto(self.cost, self.score))


def pareto(cost: Floats, score: Floats) -> Ints:
    """Return the indices of what nothing cheaper matches in score, by rising cost."""
    order = np.lexsort((-score, cost))
    if not len(order):
        return order
    best = np.maximum.accumulate(score[order])
    better = np.r_[True, score[order][1:] > best[:-1]]
    return order[better]


def _block_items(
    first: Floats, later: Floats, taps: Floats, ops: Sequence[Floats], widths: Floats
) -> list[list[_Items]]:
    """Return the useful ways to fill a block, by the width before it and its own."""
    tails = [_later_items(later[k], ops[1:]) for k in range(len(widths))]
    return [
        [_with_first(first[i, k], ops[0], tails[k], taps[k], widths[k]) for k in range(len(widths))]
        for i in range(len(first))
    ]


def _later_items(costs: Floats, ops: Sequence[Floats]) -> _Items:
    items = _Items(np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64))
    for probabilities in ops:
        items = _product(items, costs, probabilities)
    return items


def _with_first(
    costs: Floats, probabilities: Floats, tail: _Items, tap: float, width: float
) -> _Items:
    joined = _product(tail, costs, probabilities)
    ops = np.roll(joined.ops, 1, axis=1)  # the first operation was appended last
    return _Items(joined.cost + tap, joined.score + width, ops)


def _product(items: _Items, costs: Floats, probabilities: Floats) -> _Items:
    """Extend every item by every operation; drop what costs more and scores no better."""
    old, new = np.divmod(np.arange(len(items.cost) * len(costs)), len(costs))
    cost, score = items.cost[old] + costs[new], items.score[old] + probabilities[new]
    kept = pareto(cost, score)
    ops = np.c_[items.ops[old], new][kept]
    return _Items(cost[kept], score[kept], ops)


def _priced(items: _Items, price: float) -> Floats:
    priced: Floats = items.score - price * items.cost
    return priced
