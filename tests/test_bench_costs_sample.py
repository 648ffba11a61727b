"""Are cost tables certified on the whole range of what their detectors cost?"""

import random
from itertools import product

import numpy as np
import pytest
from core_parts import tiny
from profile_parts import DETECTOR, DETECTORS, SIZE, SPACE

from adapt.architecture import Choices
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.units import madds
from adapt.space import SearchSpace
from bench.costs.sample import extremes, random_choices, sampled
from search.derive.evolve import cost_of

TABLE_ONE = SearchSpace.load("mobilenet_v2")


def jagged(unit):
    """Costs that do not rise with width, as on real devices, and that are never negative."""
    return float(hash(unit) % 1000)


def every_choice(space):
    fillings = [
        list(product(*(range(len(b.candidates(p))) for p in range(b.num_ops))))
        for b in space.blocks
    ]
    for ops in product(*fillings):
        for widths in product(*(range(len(b.widths)) for b in space.blocks)):
            yield Choices(ops, widths)


@pytest.mark.parametrize("cost", [madds, jagged])
def test_extremes_are_those_of_all_networks(cost):
    model = DETECTORS.costs(cost)
    costs = [cost_of(model, choices) for choices in every_choice(SPACE)]
    found = [cost_of(model, choices) for choices in extremes(SPACE, model)]
    assert found == pytest.approx([min(costs), max(costs)])


@pytest.mark.parametrize("seed", range(3))
def test_half_of_the_networks_lie_evenly_from_the_cheapest_to_the_dearest(seed):
    model = DetectorSpace(TABLE_ONE, DETECTOR, SIZE).costs(madds)
    networks = sampled(TABLE_ONE, model, 30, random.Random(seed))
    costs = np.array([cost_of(model, choices) for choices in networks])
    ends = [cost_of(model, choices) for choices in extremes(TABLE_ONE, model)]
    assert [costs[0], costs[14]] == ends
    step = (ends[1] - ends[0]) / 14
    assert np.abs(np.diff(costs[:15]) - step).max() < 0.2 * step
    assert np.ptp(costs[15:]) < 0.6 * np.ptp(costs)  # what chance alone would reach


@pytest.mark.parametrize("number", [4, 5, 30])
def test_networks_fit_their_space_are_as_many_as_asked_and_hang_on_the_seed(number):
    space, model = tiny(), DetectorSpace(tiny(), DETECTOR, SIZE).costs(madds)
    networks = sampled(space, model, number, random.Random(1))
    assert len(networks) == number
    for choices in networks:
        choices.architecture(space).check_fits(space)
    assert networks == sampled(space, model, number, random.Random(1))
    assert networks != sampled(space, model, number, random.Random(2))


def test_random_networks_differ():
    chance = random.Random(1)
    networks = {random_choices(SPACE, chance).architecture(SPACE).hash for _ in range(20)}
    assert len(networks) > 10
