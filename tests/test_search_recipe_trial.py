from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import ok, written_recipe

from adapt.data.coco import CocoSplit
from search.recipe.joint import JointRecipe
from search.recipe.recipe import Recipe
from search.recipe.trial import TRIAL_STEPS, trial_of

INPUTS = ((256, 320), (320, 416), (192, 256))


@pytest.mark.parametrize(
    ("joint", "settings"),
    [
        (JointRecipe(), {(1, 64, 256, 320)}),
        (JointRecipe(input=INPUTS, head_depth=(0, 1)), {(0, 64, 192, 256), (0, 64, 320, 416)}),
        (JointRecipe(input=INPUTS[:1], head_depth=(0, 1)), {(0, 64, 256, 320), (1, 64, 256, 320)}),
        (JointRecipe(fpn_width=(32, 48, 64), epochs=3), {(1, 32, 256, 320), (1, 64, 256, 320)}),
    ],
)
def test_two_settings_are_left_to_race(
    joint: JointRecipe, settings: set[tuple[int, ...]], bccd_like: Recipe
) -> None:
    recipe = replace(bccd_like, joint=joint)
    tried = trial_of(recipe)
    found = {
        (one.detector.head_depth, one.detector.fpn_width, one.input.height, one.input.width)
        for one in tried.settings
    }
    assert found == settings
    assert (tried.name, tried.joint.epochs, tried.device.rounds) == (f"{recipe.name}-trial", 1, 2)
    assert tried.device.max_ap_drop == 100
    same = {name: getattr(recipe, name) for name in ("data", "detector", "input", "space")}
    assert {name: getattr(tried, name) for name in same} == same
    assert dict(tried.search.scoring) == {"score_images": 4, "score_networks": 4}
    assert tried.with_search(score_images=32, score_networks=30).search == recipe.search


@pytest.fixture(scope="module")
def bccd_like() -> Recipe:
    """A recipe for a CPU, whose heads have depth 1."""
    recipe = Recipe.load(str(Path(__file__).parents[1] / "recipes" / "bccd-cpu.toml"))
    return replace(recipe, detector=replace(recipe.detector, head_depth=1))


def test_the_command_plans_a_trial_with_few_steps(tiny_data: CocoSplit, tmp_path: Path) -> None:
    recipe = written_recipe(tmp_path, tiny_data)
    plan = ("run", recipe, "--out", tmp_path / "out", "--dry-run")
    assert ok(*plan, "--trial")["finetune"]["steps"] <= TRIAL_STEPS
    assert ok(*plan, "--trial", "--limit-steps", 1)["finetune"]["steps"] == 1
