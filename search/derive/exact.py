"""Which network of a search is the most probable one within a budget? (exact, by dynamic program)

A network picks one width per block and one operation per position. Its score is the sum of the log
probabilities of its picks, its cost the sum of their costs. Only one cost depends on two blocks: a
block's first operation reads as many channels as the block before has. So the rest of a network
depends on what comes before it through one width alone.

Networks grow block by block. Three kinds of partial networks are dropped, none of which can become
the most probable network within the budget:

* Dominated: another one that ends in the same width costs no more and scores no less. Any rest
  adds the same to both.
* Too dear: even the cheapest rest exceeds the budget.
* Bounded: even the best rest does not bring it above a network that is known to fit. For any
  price >= 0, a network within the budget has ``score <= score - price * cost + price * budget``.
  The right side is a plain sum along the blocks, so one pass from the last block to the first tells
  the most that any rest can add to it.

Any price gives a valid bound. The tightest is at the price where the network of the highest
``score - price * cost`` changes from one above the budget to one within it. Bisection finds it (the
solution of the Lagrangian dual), and the best network within the budget that it meets on the way is
the known one.

Among networks of the same score the cheapest is returned. Sums in another order would differ by
rounding and hide a tie, so scores are multiples of 2**-32, which add without any.
"""

# K widths of a block, I widths of the block before it, L later operations, M choices of operations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapt.architecture import Choices
from adapt.cost.expectation import CostModel
from adapt.errors import AdaptError
from adapt.network.supernet import Supernet
from search.recipe.budget import ROUNDING

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BISECTIONS = 60  # of the price; after these, doubles hardly differ
SCORE_STEP = 2.0**-32  # sums of its multiples are exact up to 2**21 in doubles


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
class _BlockOps:
    """Choices of all operations of a block, for one width before it and one of its own.

    Costs and scores include those of the width. Dominated choices are left out.
    """

    cost: Floats
    score: Floats
    ops: Ints  # [M, 1 + L]

    def priced(self, price: float) -> Floats:
        """Return the scores less the price of the costs."""
        priced: Floats = self.score - price * self.cost
        return priced


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
            _block_ops(
                model.first[number].numpy(),
                model.later[number].numpy(),
                model.taps[number].numpy(),
                [_stepped(scores) for scores in ops[number]],
                _stepped(widths[number]),
            )
            for number in range(len(widths))
        ]
        negative_costs = self._best_rests(self._best_values(lambda choices: -choices.cost))
        self._cheapest_rests = [-costs for costs in negative_costs]

    @classmethod
    def of(cls, supernet: Supernet, model: CostModel) -> "Deriver":
        """Return the deriver for a supernet's present probabilities; the costs are on the CPU."""
        ops, widths = supernet.log_probabilities()
        op_scores = [[p.numpy() for p in block] for block in ops]
        return cls(model, op_scores, [p.numpy() for p in widths])

    @property
    def cheapest(self) -> float:
        """The lowest cost that any network has."""
        return self._fixed + float(self._cheapest_rests[0][0])

    @property
    def dearest(self) -> float:
        """The cost of the network of the highest score: a larger budget changes nothing."""
        return self.best(self._fixed + self._best_priced(0.0).cost).cost

    def best(self, budget: float) -> Derived:
        """Return the network of the highest score that costs no more than ``budget``.

        Among several of this score it is the cheapest.

        Raises:
            AdaptError: If none does.
        """
        limit = budget - self._fixed
        limit += abs(limit) * ROUNDING
        if float(self._cheapest_rests[0][0]) > limit:
            raise AdaptError(
                f"no network costs {budget:.6g} or less, the cheapest costs {self.cheapest:.6g}; "
                "raise the budget"
            )
        price, known = self._price(limit)
        return self._search(limit, price, known)

    def front(self, number: int) -> list[Derived]:
        """Return the best networks of budgets from the cheapest to that of the highest score.

        Args:
            number: Budgets, spaced evenly in the logarithm of the cost; several may have the same
                best network, which is returned once.
        """
        budgets = np.geomspace(self.cheapest, max(self.dearest, self.cheapest), number)
        networks = [self.best(float(budget)) for budget in budgets]
        return list({network.choices: network for network in networks}.values())

    def _price(self, limit: float) -> tuple[float, Derived]:
        """Return the price at which the best priced network just fits, and one that fits.

        Args:
            limit: The budget less the fixed cost.
        """
        free = self._best_priced(0.0)
        if free.cost <= limit:
            return 0.0, free
        low, high = 0.0, 1.0 / max(abs(limit), 1e-300)
        fitting = self._best_priced(high)
        while fitting.cost > limit:
            low, high = high, high * 4
            fitting = self._best_priced(high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            network = self._best_priced(middle)
            if network.cost <= limit:
                high, fitting = middle, max(fitting, network, key=lambda found: found.score)
            else:
                low = middle
        return high, fitting

    def _best_values(self, values: Callable[[_BlockOps], Floats]) -> list[Floats]:
        """Return per block Tensor[I, K], the largest value among the choices of its operations."""
        return [
            np.array([[float(values(choices).max()) for choices in row] for row in block])
            for block in self._blocks
        ]

    def _best_rests(self, values: list[Floats]) -> list[Floats]:
        """Return per block Tensor[I], the most that it and all later blocks bring together."""
        rest = np.zeros(values[-1].shape[1])
        rests = [rest]
        for block in reversed(values):
            rest = (block + rest).max(1)
            rests.insert(0, rest)
        return rests

    def _best_priced(self, price: float) -> Derived:
        """Return the network with the highest score less priced cost, without the fixed cost."""
        values = self._best_values(lambda choices: choices.priced(price))
        rests = self._best_rests(values)
        width, ops, widths, cost, score = 0, [], [], 0.0, 0.0
        for block, value, rest in zip(self._blocks, values, rests[1:], strict=True):
            next_width = int((value[width] + rest).argmax())
            choices = block[width][next_width]
            best = int(choices.priced(price).argmax())
            ops.append(tuple(map(int, choices.ops[best])))
            widths.append(next_width)
            cost, score = cost + float(choices.cost[best]), score + float(choices.score[best])
            width = next_width
        return Derived(Choices(tuple(ops), tuple(widths)), cost, score)

    def _search(self, limit: float, price: float, known: Derived) -> Derived:
        """Return the best network, by growing all partial ones that may still become it.

        Args:
            limit: The budget less the fixed cost.
            price: Price of the bound.
            known: A network that fits.
        """
        rests = self._best_rests(self._best_values(lambda choices: choices.priced(price)))
        # Lower by more than rounding errors, or the known network itself could be dropped.
        needed = known.score - price * limit - 1e-9 * (1 + abs(known.score))
        partial = [_Partial.empty()]
        history = []
        for block, rest, cheapest in zip(
            self._blocks, rests[1:], self._cheapest_rests[1:], strict=True
        ):
            grown = []
            for width in range(len(block[0])):
                joined = _Partial.join(
                    [before.extended(block[i][width], i) for i, before in enumerate(partial)]
                )
                fits = joined.cost <= limit - cheapest[width]
                bound = joined.score - price * joined.cost + rest[width]
                grown.append(joined.chosen(fits & (bound >= needed)).pruned())
            history.append(grown)
            partial = grown
        return self._traced(history)

    def _traced(self, history: "list[list[_Partial]]") -> Derived:
        """Return the best network, read backwards from the last block.

        Args:
            history: Partial networks by block and width.
        """
        last = history[-1]
        # Of one width, the network of the highest score is the last and the only one of its score.
        ends = [w for w in range(len(last)) if len(last[w].score)]
        width = max(ends, key=lambda w: (last[w].score[-1], -last[w].cost[-1]))
        index = len(last[width].score) - 1
        cost, score = float(last[width].cost[index]), float(last[width].score[index])
        ops: list[tuple[int, ...]] = []
        widths: list[int] = []
        for block, grown in zip(reversed(self._blocks), reversed(history), strict=True):
            network = grown[width]
            before, picked = int(network.before_width[index]), int(network.picked[index])
            ops.insert(0, tuple(map(int, block[before][width].ops[picked])))
            widths.insert(0, width)
            index, width = int(network.before_index[index]), before
        return Derived(Choices(tuple(ops), tuple(widths)), self._fixed + cost, score)


@dataclass(frozen=True)
class _Partial:
    """Partial networks, from the first block to one width of some block.

    Each is made from a partial network up to the block before, and a choice of operations.
    """

    cost: Floats
    score: Floats
    before_width: Ints  # the width it had in the block before
    before_index: Ints  # which of the partial networks of that width
    picked: Ints  # which of the block's choices

    @classmethod
    def empty(cls) -> "_Partial":
        """Return the one network without any block."""
        zero, none = np.zeros(1), np.zeros(1, np.int64)
        return cls(zero, zero, none, none, none)

    @classmethod
    def join(cls, parts: "Sequence[_Partial]") -> "_Partial":
        names = ("cost", "score", "before_width", "before_index", "picked")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def extended(self, choices: _BlockOps, width: int) -> "_Partial":
        """Continue every partial network, which ends in ``width``, with every choice of a block."""
        index, picked = _pairs(len(self.cost), len(choices.cost))
        return _Partial(
            self.cost[index] + choices.cost[picked],
            self.score[index] + choices.score[picked],
            np.full(len(index), width),
            index,
            picked,
        )

    def chosen(self, keep: NDArray[np.bool_] | Ints) -> "_Partial":
        return _Partial(
            self.cost[keep],
            self.score[keep],
            self.before_width[keep],
            self.before_index[keep],
            self.picked[keep],
        )

    def pruned(self) -> "_Partial":
        return self.chosen(pareto(self.cost, self.score))


def _stepped(scores: Floats) -> Floats:
    """Return the scores rounded to multiples of :data:`SCORE_STEP`."""
    rounded: Floats = np.round(scores / SCORE_STEP) * SCORE_STEP
    return rounded


def pareto(cost: Floats, score: Floats) -> Ints:
    """Return the indices of what nothing cheaper matches in score, by rising cost."""
    order = np.lexsort((-score, cost))
    if not len(order):
        return order
    best = np.maximum.accumulate(score[order])
    better = np.r_[True, score[order][1:] > best[:-1]]
    return order[better]


def _block_ops(
    first: Floats, later: Floats, taps: Floats, ops: Sequence[Floats], widths: Floats
) -> list[list[_BlockOps]]:
    """Return the choices of a block's operations, by the width before it and its own.

    Args:
        first: Costs of the first operation, Tensor[I, K, O].
        later: Costs of a later operation, Tensor[K, O].
        taps: Costs of what else reads the block's output, Tensor[K].
        ops: Log probabilities per position, Tensor[O] each.
        widths: Log probabilities, Tensor[K].
    """
    tails = [_later_ops(later[k], ops[1:]) for k in range(len(widths))]
    return [
        [_with_first(first[i, k], ops[0], tails[k], taps[k], widths[k]) for k in range(len(widths))]
        for i in range(len(first))
    ]


def _later_ops(costs: Floats, ops: Sequence[Floats]) -> _BlockOps:
    choices = _BlockOps(np.zeros(1), np.zeros(1), np.zeros((1, 0), np.int64))
    for scores in ops:
        choices = _product(choices, costs, scores)
    return choices


def _with_first(
    costs: Floats, scores: Floats, tail: _BlockOps, tap: float, width: float
) -> _BlockOps:
    choices = _product(tail, costs, scores)
    ops = np.roll(choices.ops, 1, axis=1)  # the first operation was appended last
    return _BlockOps(choices.cost + tap, choices.score + width, ops)


def _product(choices: _BlockOps, costs: Floats, scores: Floats) -> _BlockOps:
    """Extend every choice by every candidate of one more position; drop the dominated ones."""
    old, new = _pairs(len(choices.cost), len(costs))
    cost, score = choices.cost[old] + costs[new], choices.score[old] + scores[new]
    kept = pareto(cost, score)
    ops = np.c_[choices.ops[old], new][kept]
    return _BlockOps(cost[kept], score[kept], ops)


def _pairs(rows: int, columns: int) -> tuple[Ints, Ints]:
    """Return row and column of every cell, row by row."""
    row, column = np.divmod(np.arange(rows * columns), columns)
    return row, column
