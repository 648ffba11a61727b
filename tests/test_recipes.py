"""The recipes that the repository ships, on real images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapt.architecture import Architecture
from adapt.data.coco import load_split
from adapt.data.images import InputSize
from adapt.detector.file import load_detector
from search.derive.derive import derive
from search.derive.finished import SearchFiles
from search.recipe.recipe import Recipe
from search.recipe.search_cost import search_cost
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.shared
def test_paper_recipe_searches_derives_and_finetunes_on_real_coco_images(
    shared_data: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(RECIPES / "coco-a100.toml"))
    recipe = replace(
        recipe,
        data=replace(recipe.data, root=str(shared_data / "tiny_coco"), workers=0),
        input=InputSize(64, 96, "shortest-edge"),
    )
    train = load_split(Path(recipe.data.root), recipe.data.train)
    cost = search_cost(recipe, train, None)
    session = Session(limit_steps=1, provenance=cost.provenance)
    searched = run_search(recipe, train, cost.model, tmp_path, session)
    found = derive(SearchFiles(searched), tmp_path / "arch.json")
    assert 129.1e9 < found["madds"] < 142.1e9  # the space's smallest and largest detector
    architecture = Architecture.load(tmp_path / "arch.json")
    architecture.check_fits(recipe.space.load())
    path = run_finetune(
        recipe, architecture, train, tmp_path / "detector.safetensors", Session(limit_steps=1)
    )
    model, info = load_detector(path)
    assert len(info.classes) == 80
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(p.name for p in RECIPES.glob("*.toml")))
def test_shipped_recipe_loads_and_its_space_holds_its_source_blocks(name: str) -> None:
    recipe = Recipe.load(str(RECIPES / name))
    assert recipe.name == name.removesuffix(".toml")
    assert len(recipe.space.load().blocks) == 6
