"""What a recipe asks its device for is checked before anything is measured."""

from dataclasses import replace
from pathlib import Path

import pytest

from adapt.errors import AdaptError
from bench.costs.recipe_table import RecipeTable, recipe_backend
from bench.pipeline.target import Target
from search.recipe.recipe import Recipe


@pytest.fixture
def many(simulated_recipe: Recipe) -> Recipe:
    """For TensorRT, with more candidates than it ranks."""
    return replace(
        simulated_recipe, detector=replace(simulated_recipe.detector, nms_candidates=3841)
    )


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_more_candidates_than_tensorrt_ranks_are_refused_before_a_unit_is_built(
    runtime: str, many: Recipe, tmp_path: Path
) -> None:
    table = RecipeTable(many.with_device(runtime=runtime), 3, tmp_path / "costs.sqlite")
    told = f"{runtime} ranks at most 3840 candidates, got nms_candidates 3841"
    for refused in (table.plan, table.profile, table.certify, Target(table.recipe).check):
        with pytest.raises(AdaptError, match=told):
            refused()
    assert not list(tmp_path.iterdir())


def test_onnx_runtime_ranks_them_all(many: Recipe) -> None:
    assert recipe_backend(many.with_device(runtime="ort-cpu")).runtime == "ort-cpu"
