"""What do all tests share?"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

if os.environ.get("ADAPT_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for them

import numpy as np
import pytest
import simulated_device
import torch
from core_parts import TINY_SPACE, once, tiny
from profile_parts import measurement
from simulated_device import Simulated
from traced_once import traced_once

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.data.synthetic import generate
from adapt.detector.config import RetinaNetConfig
from adapt.space import SearchSpace
from bench.costs.profiler import profile
from search.recipe.optimisation import FinetuneRecipe, SearchOptimisation, SearchRecipe
from search.recipe.recipe import DataRecipe, DeviceRecipe, Recipe, SpaceRecipe
from search.recipe.search_cost import madds_cost
from search.supernet.run import run_search
from search.train.session import Session

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
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what takes long to make lies; one process makes it for those of all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _equal_networks_are_traced_once(made: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        (made / "traces").mkdir(exist_ok=True)
        patch.setattr("export.graph.onnx_file._trace", traced_once(made / "traces"))
        yield


@pytest.fixture(scope="session")
def exports(made: Path) -> Path:
    """Where the small detector of `export_parts.py` lies, as a file of PyTorch and as graphs."""
    (made / "exports").mkdir(exist_ok=True)
    return made / "exports"


@pytest.fixture(scope="session")
def tiny_space_file(made: Path) -> Path:
    return once(made / "tiny.toml", lambda path: path.write_text(TINY_SPACE))


@pytest.fixture(scope="session")
def tiny_data(made: Path) -> CocoSplit:
    """Eight generated training images of three classes."""
    how = {"seed": 5, "train": 8, "val": 2, "size": (128, 128)}
    return load_split(once(made / "tiny-data", lambda root: generate(root, **how)), "train")


@pytest.fixture
def tiny_recipe(tmp_path: Path) -> Recipe:
    """A run on the tiny space: 4 epochs of 2 search steps, 3 epochs of 2 fine-tuning steps."""
    space = tmp_path / "tiny.toml"
    space.write_text(TINY_SPACE)
    return recipe_of(space)


def recipe_of(space: Path) -> Recipe:
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


@pytest.fixture(scope="session")
def whole_search(made: Path, tiny_space_file: Path, tiny_data: CocoSplit) -> Path:
    """Result folder of a search of the tiny recipe that nobody disturbed; read it only."""
    recipe, classes = recipe_of(tiny_space_file), len(tiny_data.class_names)

    def search(out: Path) -> None:
        run_search(recipe, tiny_data, madds_cost(recipe, classes), out)

    return once(made / "whole-search", search)


@pytest.fixture(scope="session")
def simulated_recipe(tiny_space_file: Path, tiny_data: CocoSplit) -> Recipe:
    """The tiny recipe for a device that calls itself a GPU's TensorRT."""
    recipe = recipe_of(tiny_space_file)
    data = replace(recipe.data, root=str(tiny_data.annotations.parents[1]))
    return replace(recipe, data=data, device=DeviceRecipe(runtime="tensorrt", threads=1))


@pytest.fixture(scope="session")
def searched(made: Path, simulated_recipe: Recipe, tiny_data: CocoSplit) -> Path:
    """The result of a search of one step for the simulated device; read it only."""
    recipe, classes = simulated_recipe, len(tiny_data.class_names)

    def search(out: Path) -> None:
        run_search(recipe, tiny_data, madds_cost(recipe, classes), out, Session(limit_steps=1))

    return once(made / "search", search) / "supernet.pt"


@pytest.fixture(scope="session")
def true_table(made: Path, simulated_recipe: Recipe) -> Path:
    """The true costs of the simulated recipe's space on its device; read it only."""

    def measure(path: Path) -> None:
        simulated_device.reset()
        profile(simulated_recipe.detectors(3), path, measurement(Simulated(runtime="tensorrt")))

    return once(made / "costs.sqlite", measure)


@pytest.fixture
def table(true_table: Path, tmp_path: Path) -> Path:
    """A copy of the true costs to write to; the virtual time begins again."""
    simulated_device.reset()
    return Path(shutil.copy(true_table, tmp_path / "costs.sqlite"))
