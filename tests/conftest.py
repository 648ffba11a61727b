"""What do all tests share?"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from core_parts import tiny

from adapt.coco import CocoSplit, load_split
from adapt.space import SearchSpace
from adapt.synthetic import generate

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
