"""No file that a user may have received runs code when it is read."""

import ast
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adapt.architecture import Architecture
from adapt.artifacts import header
from adapt.cost.table import CostTable
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.network.weights import source_backbone
from adapt.space import SearchSpace
from export.graph.detector import read_onnx_info
from search.derive.finished import load_searched
from search.derive.scores import Scores
from search.recipe.recipe import Recipe
from search.train.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[1]
SOURCES = [
    file for room in ("adapt", "search", "export", "bench") for file in ROOT.glob(f"{room}/**/*.py")
]
LOADERS = {  # where files are unpickled, or could be
    ("adapt/network/weights.py", "torch.load"),
    ("search/train/checkpoint.py", "torch.load"),
}


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def as_pickle(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def as_torch(bomb: Bomb, path: Path) -> None:
    torch.save(bomb, path)


def as_old_torch(bomb: Bomb, path: Path) -> None:
    torch.save(bomb, path, _use_new_zipfile_serialization=False)


def as_checkpoint(bomb: Bomb, path: Path) -> None:
    torch.save({**header("supernet", step=1, total_steps=1), "states": bomb}, path)


def as_numpy(bomb: Bomb, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([bomb], dtype=object), allow_pickle=True)


def as_zip(bomb: Bomb, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(bomb))
        file.writestr("archive/constants.pkl", pickle.dumps(bomb))


def as_tar(bomb: Bomb, path: Path) -> None:
    inner = path.with_name("pickle")
    inner.write_bytes(pickle.dumps(bomb))
    with tarfile.open(path, "w") as file:
        file.add(inner, "pickle")


READERS: dict[str, Callable[[Path], object]] = {
    "supernet.pt": load_searched,
    "d.checkpoint.pt": lambda path: read_checkpoint(path, "finetuning"),
    "weights.pth": lambda path: source_backbone("mobilenet_v2", path),
    "d.safetensors": load_detector,
    "d.onnx": read_onnx_info,
    "costs.sqlite": CostTable.open,
    "arch.json": Architecture.load,
    "scores.json": Scores.load,
    "r.toml": lambda path: Recipe.load(str(path)),
    "s.toml": lambda path: SearchSpace.load(str(path)),
}
BOMBS = [as_pickle, as_torch, as_old_torch, as_checkpoint, as_numpy, as_zip, as_tar]


@pytest.mark.parametrize("write", BOMBS)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_bomb_is_refused_and_does_not_go_off(
    name: str, write: Callable[[Bomb, Path], None], tmp_path: Path
) -> None:
    write(Bomb(tmp_path / "went off"), tmp_path / name)
    with pytest.raises(AdaptError):
        READERS[name](tmp_path / name)
    assert not (tmp_path / "went off").exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    as_torch(Bomb(tmp_path / "went off"), tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "went off").exists()


def loaders(file: Path) -> list[tuple[str, ast.Call]]:
    """Calls that can unpickle, by their names."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = [(ast.unparse(call.func), call) for call in calls]
    unpickling = ("load", "loads", "Unpickler", "read_pickle")
    modules = ("torch", "np", "numpy", "pickle", "joblib", "pandas", "pd", "marshal", "shelve")
    return [
        (name, call)
        for name, call in names
        if name.partition(".")[0] in modules and name.rpartition(".")[2] in unpickling
    ]


def test_all_that_could_unpickle_is_known_and_takes_weights_only() -> None:
    found = [(file, name, call) for file in SOURCES for name, call in loaders(file)]
    assert {(str(file.relative_to(ROOT)), name) for file, name, _ in found} == LOADERS
    for _, _, call in found:
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert options["weights_only"] == "True"
