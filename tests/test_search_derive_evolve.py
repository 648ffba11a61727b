"""Evolution stays within the budget, tries nobody twice and finds what is better."""

import random

import pytest
from core_parts import random_choices, tiny

from adapt.architecture import Choices
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import detector_cost
from adapt.cost.units import madds
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from search.derive.evolve import Individual, cost_of, crossed, evolve

SPACE = tiny()
CONFIG, SIZE = DetectorConfig(num_classes=3, fpn_width=8, head_depth=1), InputSize(64, 64)
MODEL = DetectorSpace(SPACE, CONFIG, SIZE).costs(madds)


def some(seed):
    return Choices.of(*random_choices(SPACE, seed))


def network(choices):
    return choices.architecture(SPACE)


def evolved(loss, limit=float("inf"), *, generations=5, seed=0):
    first = [some(number) for number in range(20)]
    first = [one for one in first if cost_of(MODEL, one) <= limit][:4]
    return evolve(
        SPACE,
        [Individual(one, 0, loss(one)) for one in first],
        generations,
        loss=loss,
        fits=lambda one: cost_of(MODEL, one) <= limit,
        seed=seed,
    )


def cheapness(choices):
    return -cost_of(MODEL, choices)


@pytest.mark.parametrize("seed", range(8))
def test_the_cost_of_choices_is_that_of_their_detector(seed):
    expected = detector_cost(network(some(seed)), CONFIG, SIZE, madds)
    assert cost_of(MODEL, some(seed)) == expected


def test_nobody_is_tried_twice_or_over_the_budget():
    tried = []
    limit = sorted(cost_of(MODEL, some(number)) for number in range(20))[10]
    found = evolved(lambda one: (tried.append(one), cheapness(one))[1], limit)
    assert len(found) == len(tried) > 20
    assert len({network(one.choices).hash for one in found}) == len(found)
    assert all(cost_of(MODEL, one.choices) <= limit for one in found)


def test_evolution_approaches_the_budget_if_dearer_is_better():
    limit = 0.9 * cost_of(MODEL, max((some(n) for n in range(20)), key=lambda c: -cheapness(c)))
    found = evolved(cheapness, limit, generations=20)
    first = min(one.loss for one in found if one.generation == 0)
    assert found[0].loss < first
    assert cost_of(MODEL, found[0].choices) > 0.98 * limit
    assert [one.loss for one in found] == sorted(one.loss for one in found)


def test_the_seed_decides():
    assert evolved(cheapness) == evolved(cheapness)
    assert evolved(cheapness) != evolved(cheapness, seed=1)


def test_a_population_of_one_mutates():
    one = Individual(some(0), 0, cheapness(some(0)))
    how = {"loss": cheapness, "fits": lambda _: True, "seed": 0}
    assert len(evolve(SPACE, [one], 3, **how)) == 4


def test_a_budget_that_nobody_else_fits_ends_with_the_parents():
    one = Individual(some(0), 0, 1.0)
    how = {"loss": cheapness, "fits": lambda _: False, "seed": 0}
    assert evolve(SPACE, [one], 3, **how) == [one]


def test_a_crossed_network_has_whole_blocks_of_its_parents():
    child = crossed(some(1), some(2), random.Random(0))
    for block, pair in enumerate(zip(child.ops, child.widths, strict=True)):
        assert pair in [(p.ops[block], p.widths[block]) for p in (some(1), some(2))]
