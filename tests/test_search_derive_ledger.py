"""A ledger adds up to the cost and the score of its network, and is drawn beside it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.architecture import Architecture, Choices
from adapt.cost.expectation import CostModel, detector_cost
from adapt.cost.units import madds
from adapt.data.images import InputSize
from adapt.detector.config import RetinaNetConfig
from adapt.sources import mobilenet_v2
from adapt.space import SearchSpace
from search.derive.derive import draw_ledger
from search.derive.ledger import ledger, read_ledger, table
from search.derive.scores import Scores
from search.recipe.recipe import Recipe, SpaceRecipe

RECIPE = Recipe(
    space=SpaceRecipe(width_grid=16),
    input=InputSize(256, 320),
    detector=RetinaNetConfig(fpn_width=64, head_depth=1),
)
CHANCE = np.random.default_rng(0)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return RECIPE.space.load()


@pytest.fixture(scope="module")
def scores(space: SearchSpace) -> Scores:
    ops = tuple(
        tuple(tuple(CHANCE.random(len(block.candidates(p)))) for p in range(block.num_ops))
        for block in space.blocks
    )
    return Scores(ops, tuple(tuple(CHANCE.random(len(b.widths))) for b in space.blocks), 1.0)


@pytest.fixture(scope="module")
def model() -> CostModel:
    return RECIPE.detectors(3).costs(madds)


def drawn(space: SearchSpace, scores: Scores, model: CostModel, share: float) -> Choices:
    deriver = scores.deriver(model)
    return deriver.best(deriver.cheapest + share * (deriver.dearest - deriver.cheapest)).choices


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_entries_add_up_to_what_the_network_costs_and_loses(
    share: float, space: SearchSpace, scores: Scores, model: CostModel
) -> None:
    choices = drawn(space, scores, model, share)
    network = choices.architecture(space)
    entries = ledger(scores, model, space, network)
    config, size = RECIPE.detector_config(3), RECIPE.input
    costs = [detector_cost(one, config, size, madds) for one in (network, mobilenet_v2())]
    assert model.fixed + sum(entry.cost for entry in entries) == pytest.approx(costs[0])
    assert sum(entry.saved for entry in entries) == pytest.approx(costs[1] - costs[0])
    found = Choices.found(network, space)
    assert found
    assert sum(entry.rise for entry in entries) == pytest.approx(scores.rise(found))


def test_a_network_is_found_among_the_candidates_unless_it_has_others(space: SearchSpace) -> None:
    source = mobilenet_v2()
    found = Choices.found(source, space)
    assert found
    assert found.architecture(space) == source
    blocks = list(source.blocks)
    wide = [type(blocks[0])(blocks[0].stride, 999, blocks[0].ops), *blocks[1:]]
    other = Architecture(source.source, 32, 16, source.taps, tuple(wide))
    assert Choices.found(other, space) is None
    few = Architecture(source.source, 32, 16, source.taps, source.blocks[:3])
    assert Choices.found(few, space) is None


def test_the_source_saves_nothing(space: SearchSpace, scores: Scores, model: CostModel) -> None:
    entries = ledger(scores, model, space, mobilenet_v2())
    assert [entry.saved for entry in entries] == [0.0] * 6
    assert all(line.endswith("| – |") for line in table(entries, "madds")[2:])


def test_a_ledger_is_read_as_it_was_written_and_drawn(
    space: SearchSpace, scores: Scores, model: CostModel, tmp_path: Path
) -> None:
    entries = ledger(scores, model, space, drawn(space, scores, model, 0.4).architecture(space))
    content = {"ledger": {"unit": "madds", "blocks": [entry.to_dict() for entry in entries]}}
    assert read_ledger(content, tmp_path) == (entries, "madds")
    assert read_ledger({}, tmp_path) == ([], "ms")
    assert draw_ledger({}, tmp_path / "arch.json") == {}
    (path,) = draw_ledger(content, tmp_path / "arch.json").values()
    assert path.name == "arch.choices.png"
    with Image.open(path) as image:
        assert image.width > 800
    lines = table(entries, "madds")
    assert len(lines) == 2 + 6
    assert f"{entries[0].saved / 1e9:.2f}" in lines[2]
