"""Loading is measured as training loads, and the verdict says what to do."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from adapt.data.coco import CocoSplit
from cli import app
from search.recipe.recipe import Recipe
from search.train.speed import LoadingSpeed, Speeds, measure_speeds

WAITS = "training waits for images; "


@pytest.mark.parametrize(
    ("speeds", "workers", "verdict"),
    [
        ([(0, False, 100.0)], 0, "training does not wait for images"),
        (
            [(0, False, 20.0), (2, False, 90.0)],
            0,
            WAITS + "set data.workers = 2",
        ),
        ([(0, False, 20.0), (2, False, 90.0)], 2, "training does not wait for images"),
        (
            [(0, False, 20.0), (2, False, 20.0), (0, True, 99.0)],
            2,
            WAITS + "set data.workers = 0 and data.cache_mb that holds all images",
        ),
        (
            [(0, False, 20.0), (2, False, 44.0)],
            2,
            WAITS + "store smaller images, or take more processes",
        ),
    ],
)
def test_the_verdict_says_what_to_do(
    speeds: list[tuple[int, bool, float]], workers: int, verdict: str
) -> None:
    loading = tuple(LoadingSpeed(*one) for one in speeds)
    assert Speeds(loading, 40.0, workers, "cpu").verdict == verdict


def test_each_way_is_measured(tiny_recipe: Recipe, tiny_data: CocoSplit) -> None:
    recipe = replace(tiny_recipe, data=replace(tiny_recipe.data, cache_mb=50, workers=1))
    found = measure_speeds(recipe, tiny_data, [0, 1], seconds=0.2)
    assert [(one.workers, one.cached) for one in found.loading] == [
        (0, False),
        (1, False),
        (0, True),
    ]
    speeds = [one.images_per_second for one in found.loading]
    assert min(*speeds, found.training) > 0
    assert speeds[2] > speeds[0]  # nothing is decoded


def test_the_command_tells_speeds_and_verdict(tiny_data: CocoSplit) -> None:
    root = str(tiny_data.annotations.parents[1])
    options = ["--data", root, "--workers", "0", "--seconds", "0.2", "--json"]
    result = CliRunner().invoke(app, ["data", "speed", "demo", *options])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content["training_images_per_second"] > 0
    assert "training" in content["verdict"]
