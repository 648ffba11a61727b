"""What do all tests share?"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from core_parts import TINY_SPACE, tiny

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.data.synthetic import generate
from adapt.detector.retinanet import RetinaNetConfig
from adapt.space import SearchSpace
from search.recipe.optimisation import FinetuneRecipe, SearchOptimisation, SearchRecipe
from search.recipe.recipe import DataRecipe, Recipe, SpaceRecipe

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _restored_random_states() -> Iterator[None]:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def tiny_space() -> SearchSpace:
    return tiny()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> CocoSplit:
    """Eight generated training images of three classes."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    return load_split(generate(root, seed=5, train=8, val=2, size=(128, 128)), "train")


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Recipe:
    """A run on the tiny space: 4 epochs of 2 search steps, 3 epochs of 2 fine-tuning steps."""
    space = tmp_path / "tiny.toml"
    space.write_text(TINY_SPACE)
    weights = SearchOptimisation(epochs=4, batch_size=2, warmup_steps=0, milestones=(3,))
    return Recipe(
        name="tiny",
        init="scratch",
        data=DataRecipe(workers=0),
        space=SpaceRecipe(preset=str(space)),
        input=InputSize(64, 64),
        cost_size=None,
        detector=RetinaNetConfig(fpn_width=8, head_depth=1),
        search=SearchRecipe(weights, warmup_epochs=2, arch_lr=0.05),
        finetune=FinetuneRecipe(epochs=3, batch_size=4, lr=0.01, warmup_steps=0, milestones=(2,)),
    )
