from dataclasses import replace
from pathlib import Path

import pytest
from conftest import recipe_of

from adapt.data.coco import CocoSplit
from bench.pipeline.plan import Pace, Plan, plan_run
from bench.pipeline.run import Costs
from search.recipe.recipe import DataRecipe, Recipe

PACE = Pace(call=0.5, build=2.0)


@pytest.fixture
def recipe(tiny_space_file: Path, tiny_data: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The tiny recipe, on a machine where every detector takes half a second."""
    monkeypatch.setattr(Pace, "of", lambda backend, _: backend.check() or PACE)
    monkeypatch.setattr("bench.pipeline.plan._Stages.training_flops", 1e9)
    monkeypatch.setattr("bench.pipeline.plan._Stages.reading", 0.25)
    data = DataRecipe(root=str(tiny_data.annotations.parents[1]), workers=0)
    return replace(recipe_of(tiny_space_file), data=data)


def planned(recipe: Recipe, out: Path, costs: Costs | None = None) -> Plan:
    return plan_run(recipe, out, costs or Costs(), 1)


def test_every_image_of_an_evaluation_counts(recipe: Recipe, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path)
    rounds = 10 * 0.5
    assert plan.seconds["bench"] == 2 * (2 * (0.25 + 0.5) + rounds)  # 2 detectors, 2 images
    assert plan.seconds["export"] == 2 * 10
    gated = planned(recipe.with_device(precision="fp16"), tmp_path)
    assert gated.seconds["export"] == 2 * (10 + 2 * (2 * 0.25 + 0.5 + 0.5))


def test_training_is_counted_in_operations(recipe: Recipe, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path)
    finetune = plan.training.finetune
    expected = round(finetune.steps * finetune.tflops * 1e12 / 1e9, 1)
    assert plan.seconds["finetune derived"] == plan.seconds["finetune source"] == expected > 0
    often = replace(recipe, finetune=replace(recipe.finetune, val_epochs=2))
    watched = plan_run(often, tmp_path, Costs(), None)
    evaluated = 2 * 2  # 2 images after 2 epochs of 3, and at the end
    assert watched.training.to_dict()["finetune"]["validation"]["steps"] == evaluated
    unwatched = float(plan_run(recipe, tmp_path, Costs(), None).seconds["finetune derived"])
    more = float(watched.seconds["finetune derived"]) - unwatched
    assert more == pytest.approx(evaluated * (0.25 + 0.5))
    assert list(plan.seconds) == [
        *("search", "derive", "finetune derived", "finetune source", "export", "bench")
    ]
    assert plan.total == pytest.approx(sum(map(float, plan.seconds.values())))


def test_a_joint_choice_measures_finalists_and_lets_them_race(
    recipe: Recipe, tmp_path: Path
) -> None:
    changes = {
        "search": {"choice": "joint", "cost": "latency"},
        "finetune": {"shared_epochs": 1},
        "joint": {"head_depth": [0, 1], "input": [[32, 32], [64, 64]], "survivors": 2},
    }
    plan = plan_run(recipe.changed(changes, "test"), tmp_path, Costs(), None)
    stages = list(plan.seconds)
    assert stages.index("score") < stages.index("finalists") < stages.index("race")
    assert "derive" not in stages
    assert "search" not in stages
    told = plan.to_dict()
    assert not {"weight", "arch"} & told.keys()  # no supernet is trained
    assert told["memory_gb"] == told["finetune"]["memory_gb"]
    assert "arch steps" not in plan.readable()
    each = float(plan.seconds["finetune derived"]) / 3  # of 3 epochs
    raced = 4 * 2 + 2 * 4
    assert float(plan.seconds["race"]) == pytest.approx(raced * each, rel=0.01)
    assert float(plan.seconds["finalists"]) > 4 * PACE.build


def test_a_device_elsewhere_has_unknown_times_and_says_why(recipe: Recipe, tmp_path: Path) -> None:
    on_gpu = recipe.with_search(cost="latency", target="4ms").with_device("tensorrt-rtx", "fp16")
    plan = planned(on_gpu, tmp_path)
    for stage in ("profile", "certify", "derive", "export", "bench"):
        assert "needs an NVIDIA GPU" in str(plan.seconds[stage])
    assert isinstance(plan.seconds["search"], float)
    with_table = planned(on_gpu, tmp_path, Costs(tmp_path / "costs.sqlite"))
    assert "profile" not in with_table.seconds
    assert not list(tmp_path.iterdir())


def test_people_read_a_duration_per_stage(recipe: Recipe, tmp_path: Path) -> None:
    plan = replace(planned(recipe, tmp_path), seconds={"a": 90.0, "b": 300.0, "search": 9000.0})
    rows = plan.readable()
    assert [rows[name] for name in ("a", "b", "search")] == ["90 s", "5 min", "2.5 h"]
    assert rows["all of these"] == "2.6 h"
    assert str(rows["arch steps"]).startswith(f"{plan.training.arch.steps} of ")
