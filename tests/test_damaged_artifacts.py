"""A damaged artifact is read, or refused in one sentence; it never ends in a traceback.

Every reader gets files whose bytes changed, and files whose content did: a value of another type,
size or place.
"""

import json
import math
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import once
from damage_parts import (
    CHECKPOINT,
    EDITS,
    JSON,
    ONNX,
    SAFETENSORS,
    SQLITE,
    Form,
    changed_values,
    edited,
    sentence,
    write_toml,
)
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from adapt.architecture import Architecture
from adapt.artifacts import header, read_json, write_json
from adapt.cost.table import CostTable
from adapt.detector.file import load_detector, read_detector_info
from adapt.network.weights import source_backbone
from adapt.progress import silent_stage
from adapt.space import SearchSpace
from bench.acceptance.meet import Met
from bench.acceptance.scaling import Sized
from bench.joint.finalists import load_finalists, save_finalists
from bench.pipeline.run import _deployments
from bench.pipeline.stages import Stages
from bench.study.chosen import Chosen
from bench.study.spec import STUDIES, Study
from export.run.runner import files_of, open_runner
from search.derive.derive import fresh_front
from search.derive.finished import SearchFiles, load_searched
from search.derive.ledger import Entry, read_ledger
from search.derive.scores import Scores
from search.recipe.joint import setting_of
from search.recipe.recipe import Recipe
from search.train.checkpoint import read_checkpoint
from search.train.log import read_log

OLD = Path(__file__).parent / "data" / "made_at_852bcc6"
Read = Callable[[Path], Any]


def whole_architecture(path: Path) -> None:
    recipe = Recipe.load(str(OLD / "recipe.toml"))
    architecture, setting = Architecture.load(path), setting_of(path, recipe.setting)
    entries, unit = read_ledger(read_json(path, "architecture"), path)
    assert architecture.layers()
    assert setting.input.height >= 32
    assert all(math.isfinite(entry.saved) for entry in entries)
    assert unit in ("ms", "madds")


def whole_table(path: Path) -> None:
    with CostTable.open(path) as table:
        rows = table.rows()
        assert all(math.isfinite(cost.min_ms) and cost.min_ms >= 0 for cost in rows.values())
        assert len(table.hash) == 16
        assert all(map(math.isfinite, table.correction))
        assert isinstance(table.runs, list)
        assert table.anchor_ms > 0
        _ = table.certified_ms, table.interpolation, str(table.conditions)


def whole_scores(path: Path) -> None:
    with SearchFiles(path).open() as found:
        scores = found.found
        assert isinstance(scores, Scores)
        assert math.isfinite(scores.loss)
        best = found.deriver("madds").front(2)
        assert found.network(best[0].choices).layers()


def whole_search(path: Path) -> None:
    supernet, recipe, content = load_searched(path)
    assert supernet.space.blocks
    assert recipe.detector_config(len(content["class_names"]))


def whole_detector(path: Path) -> None:
    info, _ = read_detector_info(path)
    model, _ = load_detector(path)
    assert len(info.written_ids) == len(info.classes) == info.detector.num_classes
    assert not model.training


def whole_graph(path: Path) -> None:
    for file in files_of(path):
        with open_runner("ort-cpu", file) as runner:
            assert runner.batch >= 1


def whole_plan(path: Path) -> None:
    plan = path.with_name("a.plan")
    plan.touch()
    assert files_of(plan)
    with open_runner("tensorrt", plan):
        pass


def whole_front(path: Path) -> None:
    fresh_front(path.parent)


def whole_finalists(path: Path) -> None:
    for met in load_finalists(path)[0]:
        assert met.measured_ms >= 0


def whole_space(path: Path) -> None:
    space = SearchSpace.load(str(path))
    assert sum(len(block.candidates(1)) for block in space.blocks)


def whole_recipe(path: Path) -> None:
    recipe = Recipe.load(str(path))
    _ = recipe.search.parsed_target(), recipe.settings, recipe.detector_config(3)
    recipe.data.augment.check(recipe.input)


def weights(path: Path) -> None:
    source_backbone("mobilenet_v2", path)


# Readers by the file that they read, relative to a folder with all of them.
READERS: dict[str, tuple[Form | None, Read]] = {
    "arch.json": (JSON, whole_architecture),
    "costs.sqlite": (SQLITE, whole_table),
    "supernet.pt": (CHECKPOINT, whole_search),
    "stopped.pt": (CHECKPOINT, lambda path: read_checkpoint(path, "finetuning")),
    "detector.safetensors": (SAFETENSORS, whole_detector),
    "detector.onnx": (ONNX, whole_graph),
    "a.plan.json": (JSON, whole_plan),
    "scores.json": (JSON, whole_scores),
    "front.json": (JSON, whole_front),
    "finalists.json": (JSON, whole_finalists),
    "chosen.json": (JSON, lambda path: Chosen.load(path, "k")),
    "a.deployment.json": (JSON, lambda path: _deployments({"a": path.with_name("a.onnx")})),
    "run.json": (JSON, lambda path: Stages(path.parent, silent_stage)),
    "recipe.toml": (Form(lambda path: tomllib.loads(path.read_text()), write_toml), whole_recipe),
    "tiny.toml": (Form(lambda path: tomllib.loads(path.read_text()), write_toml), whole_space),
    "study.toml": (
        Form(lambda path: tomllib.loads(path.read_text()), write_toml),
        lambda path: Study.load(str(path)),
    ),
    "a.jsonl": (None, read_log),
    "weights.pth": (CHECKPOINT, weights),
}


def save_scores(path: Path, recipe: Recipe) -> None:
    space = recipe.space.load()
    ops = tuple(
        tuple((0.1,) * len(block.candidates(n)) for n in range(block.num_ops))
        for block in space.blocks
    )
    scores = Scores(ops, tuple((0.2,) * len(block.widths) for block in space.blocks), 1.0)
    described = {"recipe": recipe.to_dict(), "space": space.to_dict(), "class_names": ["a", "b"]}
    scores.save(path, **described, identity="i", certificate={"tau": 0.9})


def make(folder: Path) -> None:
    """Write one sound file of every kind."""
    shutil.copytree(OLD, folder)
    (folder / "stopped" / "d.checkpoint.pt").rename(folder / "stopped.pt")
    content = json.loads((folder / "arch.json").read_text())
    content["setting"] = Recipe.load(str(folder / "recipe.toml")).setting.changes()
    entry = Entry(1, "16: k3_e6", 2.0, 1.0, 0.1, {"16": 0.1})
    content["ledger"] = {"unit": "ms", "blocks": [entry.to_dict()]}
    (folder / "arch.json").write_text(json.dumps(content))
    onnx = ONNX.read(folder / "detector.onnx")
    plan = header("engine", flavour="tensorrt", tensorrt_version="10", target="A100", onnx=onnx)
    write_json(folder / "a.plan.json", plan)
    save_scores(folder / "scores.json", Recipe.load(str(folder / "recipe.toml")))
    rows = [{"architecture": "arch-01.json", "score": 1.0, "madds": 5.0}]
    write_json(folder / "front.json", header("front", networks=rows))
    network = Architecture.load(folder / "arch.json")
    setting = Recipe.load(str(folder / "recipe.toml")).setting
    save_finalists([Met(Sized(network, setting), 5.0, "how")], folder / "finalists.json", key="k")
    Chosen(Sized(network, setting), 5.0, "how").save(folder / "chosen.json", "k")
    write_json(folder / "a.deployment.json", header("deployment", max_ap_drop=0.1, files=["x"]))
    write_json(folder / "run.json", header("run", stages={"search": "k", "x/search": "l"}))
    shutil.copy(STUDIES / "heads.toml", folder / "study.toml")
    small = {"features.0.0.weight": torch.zeros(32, 3, 3, 3), "features.0.1.bias": torch.ones(32)}
    torch.save(small, folder / "weights.pth")
    (folder / "a.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')


@pytest.fixture(scope="module")
def sound(made: Path) -> Path:
    return once(made / "sound", make)


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(name: str, sound: Path, tmp_path: Path) -> None:
    path = shutil.copytree(sound, tmp_path / "x") / name
    expected = "needs an NVIDIA GPU" if name == "a.plan.json" else ""
    assert expected in sentence(lambda: READERS[name][1](path))
    if name not in ("a.plan.json", "weights.pth", "stopped.pt"):
        READERS[name][1](path)


def damage(name: str, sound: Path, tmp_path: Path, examples: int) -> None:
    form, read = READERS[name]
    path = shutil.copytree(sound, tmp_path / "x") / name
    whole = path.read_bytes()
    content = form.read(path) if form else None

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < MANY,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, *((Phase.shrink,) if examples >= MANY else ())),
    )
    @given(st.data())
    def refuses_or_reads(data: st.DataObject) -> None:
        path.write_bytes(whole)
        if form is None or data.draw(st.integers(0, 2)) == 0:
            path.write_bytes(edited(whole, data.draw(EDITS)))
        else:
            form.write(path, data.draw(changed_values(content)))
        sentence(lambda: read(path))

    refuses_or_reads()


FEW, MANY = 12, 1500


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(
    name: str, sound: Path, tmp_path: Path
) -> None:
    damage(name, sound, tmp_path, FEW)


@pytest.mark.slow
# PyTorch's, before it refuses the file: users see it as a warning.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", READERS)
def test_a_file_damaged_in_many_ways_is_read_or_refused_in_one_sentence(
    name: str, sound: Path, tmp_path: Path
) -> None:
    damage(name, sound, tmp_path, MANY)
