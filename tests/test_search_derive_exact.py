"""Is the derived network the best of all that fit the budget?"""

import itertools
import random

import numpy as np
import pytest
import torch

from adapt.cost.expectation import CostModel
from adapt.errors import AdaptError
from search.derive.exact import Deriver, pareto


def chance_search(seed):
    """Random costs and probabilities over a chain of two to three blocks."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    widths = [chance.randint(1, 3) for _ in range(chance.randint(2, 3))]
    numbers = [chance.randint(1, 2) for _ in widths]

    def costs(*shape):
        found = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return (found * 4).round() if seed % 2 else found  # ties, and none

    def chances(count):
        return torch.rand(count, generator=generator, dtype=torch.float64).log_softmax(0).numpy()

    model = CostModel(
        fixed=1.5,
        first=[costs(i, k, 2) for i, k in zip([1, *widths], widths, strict=False)],
        later=[costs(k, 3) for k in widths],
        taps=[costs(k) for k in widths],
    )
    ops = [[chances(2), *(chances(3) for _ in range(n - 1))] for n in numbers]
    return model, ops, [chances(k) for k in widths]


def every_network(model, ops, widths):
    """(cost, score) of all networks, one by one."""
    for chosen in itertools.product(*(range(len(w)) for w in widths)):
        fillings = [itertools.product(*(range(len(p)) for p in block)) for block in ops]
        for picked in itertools.product(*fillings):
            yield network(model, ops, widths, picked, chosen)


def network(model, ops, widths, picked, chosen):
    cost, score, before = model.fixed, 0.0, 0
    for block, (indices, width) in enumerate(zip(picked, chosen, strict=True)):
        cost += float(model.first[block][before, width, indices[0]])
        cost += sum(float(model.later[block][width, index]) for index in indices[1:])
        cost += float(model.taps[block][width])
        score += sum(float(ops[block][p][index]) for p, index in enumerate(indices))
        score += float(widths[block][width])
        before = width
    return cost, score


@pytest.mark.parametrize("seed", range(60))
def test_brute_force_finds_nothing_better(seed):
    model, ops, widths = chance_search(seed)
    networks = list(every_network(model, ops, widths))
    deriver = Deriver(model, ops, widths)
    costs = sorted({cost for cost, _ in networks})
    assert deriver.cheapest == pytest.approx(costs[0])
    for budget in {costs[0], costs[len(costs) // 3], costs[len(costs) // 2], costs[-1]}:
        found = deriver.best(budget)
        assert found.cost <= budget * (1 + 1e-12)
        expected = max(score for cost, score in networks if cost <= budget * (1 + 1e-12))
        assert found.score == pytest.approx(expected, abs=1e-9)
        assert network(
            model, ops, widths, found.choices.ops, found.choices.widths
        ) == pytest.approx((found.cost, found.score))


@pytest.mark.parametrize("seed", range(20))
def test_among_networks_of_the_same_score_the_cheapest_is_derived(seed):
    model, ops, widths = chance_search(seed)
    # Nothing was decided: every score occurs many times, summed in many orders.
    ops = [[np.full_like(p, -np.log(len(p))) for p in block] for block in ops]
    if seed % 3:  # but for one operation, so that the scores of networks differ
        ops[0][0] = chance_search(seed)[1][0][0]
    widths = [np.full_like(p, -np.log(len(p))) for p in widths]
    networks = list(every_network(model, ops, widths))
    deriver = Deriver(model, ops, widths)
    costs = sorted({cost for cost, _ in networks})
    for budget in (costs[0], costs[len(costs) // 2], costs[-1]):
        fitting = [(cost, score) for cost, score in networks if cost <= budget * (1 + 1e-12)]
        best = max(score for _, score in fitting)
        cheapest = min(cost for cost, score in fitting if score > best - 1e-9)
        assert deriver.best(budget).cost == pytest.approx(cheapest, rel=1e-12)
    assert deriver.dearest == pytest.approx(cheapest, rel=1e-12)  # that of the largest budget


def test_a_budget_below_the_cheapest_names_it():
    model, ops, widths = chance_search(1)
    deriver = Deriver(model, ops, widths)
    with pytest.raises(AdaptError, match=f"the cheapest costs {deriver.cheapest:.6g}; raise"):
        deriver.best(deriver.cheapest - 0.01)


def test_pareto_keeps_what_nothing_cheaper_matches():
    cost, score = np.array([3.0, 1.0, 2.0, 1.0, 4.0]), np.array([5.0, 2.0, 2.0, 1.0, 6.0])
    assert pareto(cost, score).tolist() == [1, 0, 4]
    assert len(pareto(np.zeros(0), np.zeros(0))) == 0
