"""A recipe becomes a benchmarked detector on every runtime, and nothing is done twice."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import recipe_of
from core_parts import once

from adapt.artifacts import read_json
from adapt.cost.table import CostTable
from adapt.data.coco import CocoSplit
from adapt.progress import silent_stage
from bench.latency.timing import Protocol
from bench.pipeline.result import RunResult
from bench.pipeline.run import Costs, Run
from search.recipe.recipe import DataRecipe, Recipe
from search.train.session import Session

SHORT = Protocol(2, round_ms=0.1, retries=0, drift=100.0)


@pytest.fixture(scope="module", autouse=True)
def _short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.costs.profiler.CPU_PROTOCOL", SHORT)
        patch.setattr("bench.costs.certify.WHOLE_PROTOCOL", SHORT)
        patch.setattr("bench.costs.certify.DETECTORS", 4)
        patch.setattr("bench.pipeline.run.DETECTOR_PROTOCOL", SHORT)
        yield


@pytest.fixture(scope="module")
def for_latency(tiny_space_file: Path, tiny_data: CocoSplit) -> Recipe:
    """The tiny recipe, for a latency that every network meets."""
    recipe = recipe_of(tiny_space_file)
    data = DataRecipe(root=str(tiny_data.annotations.parents[1]), workers=0)
    device = replace(recipe.device, rounds=2)
    recipe = replace(recipe, data=data, device=device)
    return recipe.with_search(cost="latency", target="1000ms")


def run(recipe: Recipe, out: Path, costs: Costs | None = None, **session: Any) -> RunResult:
    return Run(recipe, out, Session(limit_steps=1, **session), silent_stage, costs).execute()


@pytest.fixture(scope="module")
def on_cpu(made: Path, for_latency: Recipe) -> Path:
    """The folder of a run for ONNX Runtime in fp32; read it only."""
    return once(made / "run-on-cpu", lambda out: run(for_latency, out))


@pytest.fixture
def folder(on_cpu: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to run in."""
    return Path(shutil.copytree(on_cpu, tmp_path / "run"))


def test_int8_in_batches_repeats_what_depends_on_the_device_and_loses_nothing(
    for_latency: Recipe, folder: Path
) -> None:
    result = run(for_latency.with_device(precision="int8", batch=2), folder)
    assert {n for n, state in result.stages.items() if state == "reused"} >= {"finetune source"}
    place = folder / "ort-cpu-int8-2"
    with CostTable.open(place / "costs.sqlite") as table:
        assert str(table.conditions) == "ort-cpu int8 batch 2"
    assert result.bench is not None
    for entry in result.bench.entries:
        assert (entry.precision, entry.batch) == ("int8", 2)
        assert entry.artifact.parent == place
    assert read_json(folder / "derived.deployment.json", "deployment")["precision"] == "fp32"
    assert "on the 2 images of the gate" in (place / "report" / "report.md").read_text()
    back = run(for_latency, folder)
    assert {n for n, state in back.stages.items() if state == "ran"} == {"bench"}


def test_pytorch_runs_the_detector_files_themselves(for_latency: Recipe, folder: Path) -> None:
    result = run(for_latency.with_device(runtime="torch", batch=3), folder)
    assert result.bench is not None
    assert [e.runner["runtime"] for e in result.bench.entries] == ["torch", "torch"]
    assert [e.batch for e in result.bench.entries] == [3, 3]
    assert {e.artifact.suffix for e in result.bench.entries} == {".safetensors"}
    assert result.rule == "budget 1000 ms, verified"
