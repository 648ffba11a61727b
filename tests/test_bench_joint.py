"""Settings are enumerated, carried over to by two measurements, and raced for."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_of

from adapt.artifacts import header, write_json
from adapt.cost.units import detector_units, madds
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.errors import AdaptError
from adapt.progress import silent
from adapt.sources import mobilenet_v2
from bench.acceptance.meet import BudgetMeter
from bench.acceptance.scaling import Sized, scaled
from bench.joint.finalists import drawn_jointly, finalists, load_finalists, save_finalists
from bench.joint.race import Race, Racer, run_racer, run_races
from search.derive.chance import noise_deriver
from search.derive.exact import Deriver
from search.derive.scores import Scores
from search.recipe.joint import JointRecipe, Setting
from search.recipe.recipe import Recipe


@pytest.fixture
def recipe(tiny_space_file: Path, tiny_data: CocoSplit) -> Recipe:
    recipe = recipe_of(tiny_space_file)
    data = {"root": str(tiny_data.annotations.parents[1])}
    return recipe.changed({"data": data, "finetune": {"epochs": 9}}, "test")


def test_fcos_is_one_setting_whatever_the_scales_of_anchors(recipe: Recipe) -> None:
    joint = JointRecipe(head=("retinanet", "fcos"), anchor_scales=(1, 3))
    found = [(s.detector.head, s.detector.anchor_scales) for s in joint.settings(recipe.setting)]
    assert sorted(found) == [("fcos", 3), ("retinanet", 1), ("retinanet", 3)]


def test_settings_are_all_combinations_and_anchors_keep_their_size_on_the_objects(
    recipe: Recipe,
) -> None:
    own = replace(recipe.setting, detector=replace(recipe.detector, anchor_size=16))
    joint = JointRecipe(head_depth=(0, 2), fpn_width=(8, 16), input=((32, 32), (96, 96)))
    settings = joint.settings(own)
    found = {
        (s.detector.head_depth, s.detector.fpn_width, s.input.height, s.detector.anchor_size)
        for s in settings
    }
    anchors = {32: 8, 96: 24}  # 16 at 64x64
    assert found == {(d, w, h, anchors[h]) for d in (0, 2) for w in (8, 16) for h in (32, 96)}
    assert len(settings) == joint.candidates == 8
    assert JointRecipe().settings(own) == [own]
    scales = JointRecipe(anchor_scales=(1, 3), head_depth=(0, 1)).settings(own)
    assert {(s.detector.anchor_scales, s.detector.head_depth) for s in scales} == {
        (1, 0),
        (1, 1),
        (3, 0),
        (3, 1),
    }
    assert ["anchor_scales 1" in str(one) for one in scales] == [True, False, True, False]
    levels = JointRecipe(finest_level=(3, 4)).settings(own)
    assert [s.detector.finest_level for s in levels] == [3, 4]
    assert ["finest_level 4" in str(one) for one in levels] == [False, True]
    kinds = JointRecipe(separable=(False, True), head=("retinanet", "faster-rcnn")).settings(own)
    assert [(one.detector.head, one.detector.separable) for one in kinds] == [
        ("retinanet", False),
        ("faster-rcnn", False),
        ("retinanet", True),
    ]
    both = JointRecipe(separable=(False, True)).settings(own)
    assert ["separable" in str(one) for one in both] == [False, True]
    assert own.changed(both[1].changes()) == both[1]
    assert own.changed(levels[1].changes()) == levels[1]
    assert own.changed(scales[0].changes()) == scales[0]
    assert JointRecipe().candidates == 1


@pytest.mark.parametrize(
    ("joint", "finalists", "rounds"),
    [
        (JointRecipe(), 1, []),
        (JointRecipe(), 2, [(2, 2)]),
        (JointRecipe(), 9, [(9, 2), (3, 4)]),
        (JointRecipe(epochs=1, survivors=2), 7, [(7, 1), (4, 2), (2, 4)]),
    ],
)
def test_a_race_ends_with_one(
    joint: JointRecipe, finalists: int, rounds: list[tuple[int, int]]
) -> None:
    assert joint.rounds(finalists) == rounds


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        ({"epochs": 0}, "joint.epochs must be at least 1, got 0"),
        ({"survivors": 1}, "joint.survivors must be at least 2, got 1"),
        ({"head_depth": [1, 1]}, r"joint.head_depth has a candidate twice, got \[1, 1\]"),
        ({"depth": [1]}, "is head_depth meant"),
    ],
)
def test_wrong_candidates_are_refused(
    joint: dict[str, object], message: str, recipe: Recipe
) -> None:
    with pytest.raises(AdaptError, match=message):
        recipe.changed({"joint": joint}, "test")


def test_candidates_that_no_detector_has_are_refused(recipe: Recipe) -> None:
    with pytest.raises(AdaptError, match="multiple of 32 pixels high and wide, got 50x64"):
        _ = recipe.changed({"joint": {"input": [[50, 64]]}}, "test").settings
    whole = {"input": {"resize": "shortest-edge"}, "joint": {"input": [[64, 64]]}}
    with pytest.raises(AdaptError, match="needs an input that is a letterbox"):
        _ = recipe.changed(whole, "test").settings


def test_trainings_do_not_depend_on_what_else_could_be_chosen(recipe: Recipe) -> None:
    other = recipe.changed({"joint": {"head_depth": [0, 1]}}, "test")
    assert other.finetune_hash == recipe.finetune_hash
    assert other.search_hash == recipe.search_hash


class Counted(BudgetMeter):
    """A meter on a device that takes 3 ms for a detector, and one for so many multiply-adds."""

    def measure(self, sized: Sized) -> tuple[float, bool]:
        config = DetectorConfig(**sized.detector.to_dict(), num_classes=3)
        units = detector_units(sized.architecture, config, sized.setting.input)
        return 3 + sum(map(madds, units)) / 1e6, False


def zero_scores(recipe: Recipe) -> Scores:
    """Scores by which wider blocks are better, and nothing else counts."""
    space = recipe.space.load()
    ops = tuple(
        tuple((0.0,) * len(block.candidates(position)) for position in range(block.num_ops))
        for block in space.blocks
    )
    return Scores(ops, tuple(tuple(1 / w for w in block.widths) for block in space.blocks), 1.0)


SETTINGS = {"head_depth": (0, 1, 4), "input": ((32, 32), (64, 64))}


def test_finalists_fill_the_budget_in_every_setting_that_can_meet_it(recipe: Recipe) -> None:
    meter, space = Counted(recipe, 3), recipe.space.load()
    model, scores = recipe.detectors(3).costs(madds), zero_scores(recipe)
    settings = JointRecipe(**SETTINGS).settings(recipe.setting)
    whole = scores.deriver(model)
    ends = whole.best(whole.cheapest), whole.best(whole.dearest)
    ms = {
        setting: [meter.measure(Sized(e.choices.architecture(space), setting))[0] for e in ends]
        for setting in settings
    }
    least, most = ms[settings[4]]  # head_depth 1, 64x64: the recipe's own
    budget_ms = (least + most) / 2
    found = finalists(meter, scores.deriver, model, space, settings, budget_ms)
    assert [met.sized.setting for met in found] == [s for s in settings if ms[s][0] <= budget_ms]
    assert 1 < len(found) < len(settings)
    for met in found:
        assert met.measured_ms <= budget_ms * 1.015
        assert met.measured_ms > min(0.9 * budget_ms, 0.999 * ms[met.sized.setting][1])


def test_joint_draws_fill_the_budget_in_any_setting_that_can(recipe: Recipe) -> None:
    meter, space = Counted(recipe, 3), recipe.space.load()
    model = recipe.detectors(3).costs(madds)
    settings = JointRecipe(**SETTINGS).settings(recipe.setting)
    own = zero_scores(recipe).deriver(model)
    middle = own.best((own.cheapest + own.dearest) / 2).choices.architecture(space)
    budget_ms = meter.measure(Sized(middle, settings[4]))[0]

    def draw(seed: int, ms: float) -> Sized:
        chance = np.random.default_rng(seed)
        met = drawn_jointly(meter, model, space, settings, ms, chance)
        assert 0.9 * ms < met.measured_ms <= 1.015 * ms
        return met.sized

    drawn = [draw(seed, budget_ms) for seed in range(12)]
    assert len({sized.setting for sized in drawn}) > 1
    assert len({sized.architecture for sized in drawn}) > 6
    assert draw(3, budget_ms) == drawn[3]
    with pytest.raises(AdaptError, match="none of 6 settings has a detector of 3 ms or less"):
        draw(0, 3.0)


def test_carried_costs_are_exact_where_one_line_carries_them(recipe: Recipe) -> None:
    from bench.joint.finalists import carried

    meter, space = Counted(recipe, 3), recipe.space.load()
    model, scores = recipe.detectors(3).costs(madds), zero_scores(recipe)
    deeper = replace(recipe.setting, detector=replace(recipe.detector, head_depth=3))
    deriver, cheapest = carried(meter, scores.deriver, model, space, deeper)
    assert isinstance(deriver, Deriver)
    assert cheapest.measured_ms == meter.measure(cheapest.sized)[0]
    for budget in np.linspace(cheapest.measured_ms, deriver.dearest, 5):
        network = deriver.best(float(budget))
        sized = Sized(network.choices.architecture(space), deeper)
        assert meter.measure(sized)[0] == pytest.approx(network.cost)


def test_other_scores_measure_nothing_again_to_carry_costs_over(recipe: Recipe) -> None:
    from bench.joint.finalists import carried

    measured = list[Sized]()

    class Noting(Counted):
        def measure(self, sized: Sized) -> tuple[float, bool]:
            measured.append(sized)
            return super().measure(sized)

    meter, space = Noting(recipe, 3), recipe.space.load()
    model, chance = recipe.detectors(3).costs(madds), np.random.default_rng(5)
    drawn = partial(noise_deriver, space=space, chance=chance)
    for derive in (zero_scores(recipe).deriver, drawn):
        carried(meter, derive, model, space, recipe.setting)
    assert measured[:2] == measured[2:]
    assert measured[0] != measured[1]


def test_a_budget_below_every_setting_names_the_cheapest(recipe: Recipe) -> None:
    model, scores = recipe.detectors(3).costs(madds), zero_scores(recipe)
    settings = JointRecipe(**SETTINGS).settings(recipe.setting)
    space = recipe.space.load()
    with pytest.raises(
        AdaptError, match=r"no detector of 6 settings takes 1 ms .*head_depth 0.*32x"
    ):
        finalists(Counted(recipe, 3), scores.deriver, model, space, settings, 1.0)


def test_finalists_are_read_as_they_were_written(recipe: Recipe, tmp_path: Path) -> None:
    model, scores = recipe.detectors(3).costs(madds), zero_scores(recipe)
    settings = JointRecipe(**SETTINGS).settings(recipe.setting)
    meter, space = Counted(recipe, 3), recipe.space.load()
    found = finalists(meter, scores.deriver, model, space, settings, 1000.0)
    save_finalists(found, tmp_path / "f.json", key="of")
    again, content = load_finalists(tmp_path / "f.json")
    assert again == found
    assert content["key"] == "of"


def small(recipe: Recipe) -> list[Sized]:
    """Four detectors of different inputs and widths."""
    sizes = [Setting(recipe.detector, InputSize(size, size)) for size in (32, 64)]
    return [
        scaled(mobilenet_v2(), "width", factor, setting)
        for factor in (0.1, 0.2)
        for setting in sizes
    ]


def test_a_race_is_won_by_held_out_ap_of_the_last_round(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.changed({"joint": {"epochs": 1, "survivors": 2}}, "test")
    race = Race("race", recipe, tuple(small(recipe)), tmp_path)
    ap = [{0: 10.0, 1: 30.0, 2: 20.0, 3: 5.0}, {1: 40.0, 2: 41.0}]  # by round and finalist

    def train(racers: Sequence[Racer]) -> None:
        of_round = ap[racers[0].job.recipe.finetune.epochs - 1]
        assert [racer.number for racer in racers] == sorted(
            of_round, key=lambda n: -ap[0][n] if len(of_round) < 4 else n
        )
        for racer in racers:
            content = {"val_ap": of_round[racer.number], "seconds": 1.5}
            write_json(racer.file, header("racer", key=racer.job.key(), **content))

    run_races([race], train)
    assert race.winner == 2
    assert race.seconds == 6 * 1.5
    assert not race.doubt
    ap[1] = {1: 0.0, 2: 0.4}
    for racer in race.round(1):
        racer.file.unlink()
    run_races([race], train)
    assert race.winner == 2
    assert "none of 4 finalists reached an AP of 0.5" in race.doubt


def test_a_race_trains_the_best_longer_and_repeats_nothing(recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe.changed({"joint": {"epochs": 1, "survivors": 2}}, "test")
    race = Race("race", recipe, tuple(small(recipe)), tmp_path, limit_steps=1)
    trained: list[tuple[str, int]] = []

    def train(racers: Sequence[Racer]) -> None:
        for racer in racers:
            trained.append((racer.job.path.stem, racer.job.recipe.finetune.epochs))
            run_racer(racer, silent, lambda warning: None)

    run_races([race], train)
    first, second = race.results()
    assert [one["finalist"] for one in first] == [0, 1, 2, 3]
    assert {one["epochs"] for one in first} == {1}
    best = sorted(first, key=lambda one: -one["val_ap"])[:2]
    assert {one["finalist"] for one in second} == {one["finalist"] for one in best}
    assert race.winner == max(second, key=lambda one: one["val_ap"])["finalist"]
    assert race.seconds > 0
    assert len(trained) == 6
    assert not list(tmp_path.glob("*.safetensors"))
    run_races([race], train)
    assert len(trained) == 6
    (tmp_path / "round1-3.json").unlink()
    run_races([race], train)
    assert trained[6:] == [("round1-3", 1)]
    longer = replace(race, recipe=recipe.changed({"joint": {"epochs": 2}}, "test"))
    assert longer.key() != race.key()
