"""A recipe becomes a benchmarked detector on every runtime, and nothing is done twice."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import recipe_of
from core_parts import once, random_architecture, tiny
from simulated_gpu import simulated_gpu

from adapt.artifacts import file_hash, read_json
from adapt.cost.table import CostTable
from adapt.data.coco import CocoSplit
from adapt.detector.file import read_detector_info
from adapt.errors import AdaptError
from adapt.progress import silent_stage
from bench.latency.backend import Backend, TensorRTBackend, open_backend
from bench.latency.timing import Protocol
from bench.pipeline.choice import Front, Network, source_network
from bench.pipeline.result import RunResult
from bench.pipeline.run import Costs, Run
from search.recipe.recipe import DataRecipe, Recipe
from search.train.session import Session

SHORT = Protocol(2, round_ms=0.1, retries=0, drift=100.0)


def tiny_source(recipe: Recipe, folder: Path) -> Network:
    """A small network in the place of the source."""
    return replace(source_network(recipe, folder), architecture=random_architecture(tiny(), 1))


@pytest.fixture(scope="module", autouse=True)
def _small_and_short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.costs.profiler.CPU_PROTOCOL", SHORT)
        patch.setattr("bench.costs.profiler.GPU_PROTOCOL", SHORT)
        patch.setattr("bench.costs.certify.WHOLE_PROTOCOL", SHORT)
        # Measured so shortly, operations of microseconds may look free; another test is of that.
        patch.setattr("adapt.cost.resolution.TOLERATED", 1.0)
        patch.setattr("bench.costs.certify.DETECTORS", 4)
        patch.setattr("bench.pipeline.run.DETECTOR_PROTOCOL", SHORT)
        # A source as small as what is derived: MobileNetV2 takes most of the time of an export.
        patch.setattr("bench.pipeline.run.source_network", tiny_source)
        yield


@pytest.fixture(scope="module")
def for_latency(tiny_space_file: Path, tiny_data: CocoSplit) -> Recipe:
    """The tiny recipe, for a latency that every network meets."""
    recipe = recipe_of(tiny_space_file)
    data = DataRecipe(root=str(tiny_data.annotations.parents[1]), workers=0)
    device = replace(recipe.device, rounds=2)
    recipe = replace(recipe, data=data, device=device)
    return recipe.with_search(cost="latency", target="1000ms")


def run(
    recipe: Recipe, out: Path, costs: Costs | None = None, front: Front | None = None, **told: Any
) -> RunResult:
    session = Session(limit_steps=1, **told)
    return Run(recipe, out, session, silent_stage, costs, front, 2 if front else 1).execute()


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


@pytest.mark.slow
def test_ssdlite_is_profiled_searched_derived_trained_deployed_and_benchmarked(
    for_latency: Recipe, tmp_path: Path
) -> None:
    recipe = for_latency.changed({"detector": {"head": "ssdlite"}}, "the test")
    result = run(recipe, tmp_path / "run")
    assert result.bench is not None
    assert [entry.name for entry in result.bench.entries] == ["derived", "source"]
    with CostTable.open(tmp_path / "run" / "costs.sqlite") as table:
        assert [key for key in table.rows() if key.endswith("head=ssdlite")]


TWO_STAGES = {"head": "faster-rcnn", "proposals": 20, "box_width": 8, "candidates": 50}


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["probability", "scores", "joint"])
def test_faster_rcnn_is_profiled_chosen_trained_deployed_and_benchmarked(
    choice: str, for_latency: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.acceptance.meet.MEASUREMENTS", 2)
    changes: dict[str, Any] = {
        "detector": TWO_STAGES,
        "search": {"choice": choice},
        "finetune": {"shared_epochs": 1, "teacher_weight": 6 if choice == "scores" else 0},
    }
    if choice == "joint":
        changes["joint"] = {"head_depth": [0, 1], "epochs": 1}
    result = run(for_latency.changed(changes, "the test"), tmp_path / "run")
    assert result.bench is not None
    assert [entry.name for entry in result.bench.entries] == ["derived", "source"]
    with CostTable.open(tmp_path / "run" / "costs.sqlite") as table:
        (rest,) = [key for key in table.rows() if "head=faster-rcnn" in key]
    assert rest.endswith("proposals=20 box_width=8")


def test_a_front_is_derived_and_scaled_for_shares_of_the_source_and_drawn_as_families(
    for_latency: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.acceptance.meet.MEASUREMENTS", 2)
    told: list[str] = []
    result = run(for_latency, folder, front=Front(("90%",), scaled=True), warn=told.append)
    assert result.stages["search"] == "reused"
    assert [network.name for network in result.networks] == ["derived-90", "scaled-90", "source"]
    assert result.bench is not None
    assert [entry.name for entry in result.bench.entries] == ["derived-90", "scaled-90", "source"]
    source_ms = read_json(folder / "source.latency.json", "latency")["min_ms"]
    assert result.networks[0].rule == f"budget {0.9 * source_ms:g} ms, verified"
    assert "width of all blocks, factor" in (folder / "report/report.md").read_text()
    assert result.families()["source scaled in width"] == ["scaled-90"]
    more = run(for_latency, folder, front=Front(("90%", "1000ms")))
    ran = {name for name, state in more.stages.items() if state == "ran"}
    assert ran == {"derive 1000ms", "finetune derived-1000ms", "export derived-1000ms", "bench"}


@pytest.mark.parametrize(
    ("budgets", "scaled", "message"),
    [
        (("75",), False, r"--budgets must be like 75% .* got '75'"),
        (("0%",), False, "--budgets must be like"),
        (("infms",), False, "--budgets must be like"),
        (("75%", "75.0%"), False, "must differ, got 75%,75.0%"),
        ((), True, "--scaled needs latencies to scale to; pass --budgets"),
    ],
)
def test_a_front_of_wrong_budgets_is_refused(
    budgets: tuple[str, ...], scaled: bool, message: str
) -> None:
    with pytest.raises(AdaptError, match=message):
        Front(budgets, scaled)


def test_scores_need_a_start_a_budget_and_images_that_are_not_reported(
    for_latency: Recipe, tmp_path: Path
) -> None:
    by_scores = for_latency.with_search(choice="scores")
    with pytest.raises(AdaptError, match=r"set finetune\.shared_epochs"):
        run(by_scores, tmp_path / "out")
    taught = for_latency.changed({"finetune": {"teacher_weight": 6}}, "the test")
    with pytest.raises(AdaptError, match=r"teacher_weight is 6, .*; set finetune\.shared_epochs"):
        run(taught, tmp_path / "out")
    shared = {"finetune": {"shared_epochs": 1}}
    with pytest.raises(AdaptError, match=r"set search\.target, or pass --budgets"):
        run(by_scores.with_search(target="").changed(shared, "the test"), tmp_path / "out")
    told: list[str] = []
    session = Session(limit_steps=1, warn=told.append)
    Run(by_scores.changed(shared, "the test"), tmp_path / "out", session, silent_stage)
    assert any("chosen on `val`, which the benchmark reports too" in line for line in told)


JOINT = {
    "search": {"choice": "joint"},
    "finetune": {"shared_epochs": 1},
    "joint": {"head_depth": [0, 1], "input": [[32, 64], [64, 64]], "epochs": 1},
}


def test_pyramid_heads_and_input_are_chosen_with_the_backbone(
    for_latency: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.acceptance.meet.MEASUREMENTS", 2)
    jointly = for_latency.changed(JOINT, "the test")
    result = run(jointly, tmp_path / "out")
    derived, source = result.networks
    raced = read_json(tmp_path / "out" / "arch.json", "architecture")
    assert [len(of_round) for of_round in raced["race"]] == [4, 2]
    assert derived.setting in jointly.settings
    assert source.setting == jointly.setting
    assert str(derived.setting) in derived.rule
    assert len(derived.race) == 4
    assert derived.race[0].startswith(str(derived.setting))
    assert sum(", then " in line for line in derived.race) == 2
    assert f"derived raced: {derived.race[0]}" in (tmp_path / "out/report/report.md").read_text()
    info, _ = read_detector_info(tmp_path / "out" / "derived.safetensors")
    assert info.input == derived.setting.input
    assert info.detector.head_depth == derived.setting.detector.head_depth
    assert (tmp_path / "out" / "report" / "report.md").is_file()
    again = run(jointly, tmp_path / "out")
    assert {name for name, state in again.stages.items() if state == "ran"} == {"bench"}
    with pytest.raises(AdaptError, match="holds the stage 'derive' of another recipe"):
        run(jointly.with_search(choice="scores"), tmp_path / "out")


@pytest.mark.slow
def test_settings_race_within_every_budget(
    for_latency: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.acceptance.meet.MEASUREMENTS", 2)
    jointly = for_latency.changed(JOINT, "the test")
    result = run(jointly, tmp_path / "out", front=Front(("1000ms", "999ms")))
    assert {name for name, state in result.stages.items() if state == "ran"} >= {
        "finalists 1000ms",
        "derive 999ms",
        "finetune derived-999ms",
    }


def test_a_joint_choice_needs_a_latency_the_device_and_a_pyramid_that_can_be_taught(
    for_latency: Recipe, tmp_path: Path, rtx_table: Path
) -> None:
    jointly = for_latency.changed(JOINT, "the test")
    with pytest.raises(AdaptError, match=r"'joint' measures .*; set search\.cost to 'latency'"):
        run(jointly.with_search(cost="madds", target="1G"), tmp_path / "out")
    elsewhere = jointly.with_device(runtime="tensorrt-rtx")
    with pytest.raises(AdaptError, match=r"needs an NVIDIA GPU.*set search\.choice to 'scores'"):
        run(elsewhere, tmp_path / "out", Costs(rtx_table))
    taught = {"finetune": {"teacher_weight": 6}, "joint": {"fpn_width": [4, 8]}}
    with pytest.raises(AdaptError, match=r"joint\.fpn_width is \[4, 8\]; leave it out, or set"):
        run(jointly.changed(taught, "the test"), tmp_path / "out")
    alone = {"joint": {"head_depth": [1], "input": [[64, 64]]}}
    with pytest.raises(AdaptError, match="there is one setting of pyramid, heads and input"):
        run(jointly.changed(alone, "the test"), tmp_path / "out")
    with pytest.raises(AdaptError, match="multiple of 32 pixels"):
        run(jointly.changed({"joint": {"input": [[33, 64]]}}, "the test"), tmp_path / "out")


def test_budgets_need_a_search_for_latency_and_the_device(
    for_latency: Recipe, tmp_path: Path, rtx_table: Path
) -> None:
    front = Front(("75%",))
    with pytest.raises(AdaptError, match=r"searches for multiply-adds; set search\.cost"):
        run(for_latency.with_search(cost="madds", target=""), tmp_path / "out", front=front)
    elsewhere = for_latency.with_device(runtime="tensorrt-rtx")
    with pytest.raises(AdaptError, match=r"--budgets measures networks .* needs an NVIDIA GPU"):
        run(elsewhere, tmp_path / "out", Costs(rtx_table), front=front)


def test_pytorch_runs_the_detector_files_themselves(for_latency: Recipe, folder: Path) -> None:
    result = run(for_latency.with_device(runtime="torch", batch=3), folder)
    assert result.bench is not None
    assert [e.runner["runtime"] for e in result.bench.entries] == ["torch", "torch"]
    assert [e.batch for e in result.bench.entries] == [3, 3]
    assert {e.artifact.suffix for e in result.bench.entries} == {".safetensors"}
    assert result.networks[0].rule == "budget 1000 ms, verified"


@pytest.mark.parametrize("workers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tensorrt_in_fp16_is_profiled_verified_built_and_benchmarked_as_engines(
    workers: bool, for_latency: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a simulated GPU everything but the numbers is real; usually without worker processes."""

    def opened(*arguments: Any, **options: Any) -> Backend:
        backend = open_backend(*arguments, **options)
        assert isinstance(backend, TensorRTBackend)
        return replace(backend, isolated=workers)

    monkeypatch.setattr("bench.costs.recipe_table.open_backend", opened)
    with simulated_gpu("10.16.0.72") as gpu:
        result = run(for_latency.with_device(runtime="tensorrt", precision="fp16"), folder)
    place = folder / "tensorrt-fp16-1"
    assert result.networks[0].rule == "budget 1000 ms, verified"
    assert result.stages["finetune source"] == "reused"
    assert result.bench is not None
    for entry in result.bench.entries:
        assert entry.artifact == place / f"{entry.name}.plan"
        assert (entry.runner["runtime"], entry.precision) == ("tensorrt", "fp16")
        assert entry.latency.state.clock_mhz  # read where the engine runs
        assert result.deployed[entry.name]["ap_gate"]["ap_engine"] is not None
    with CostTable.open(place / "costs.sqlite") as table:
        assert table.conditions.device == result.bench.entries[0].runner["device"]
    assert "cuda.CUDAGraph.replay" in gpu.told()


def test_tensorrt_rtx_without_a_gpu_goes_up_to_the_engine_with_a_table_from_elsewhere(
    for_latency: Recipe, folder: Path, rtx_table: Path
) -> None:
    warnings: list[str] = []
    recipe = for_latency.with_device(runtime="tensorrt-rtx", precision="fp16")
    result = run(recipe, folder, Costs(rtx_table), warn=warnings.append)
    assert result.bench is None
    assert result.report is None
    assert result.networks[0].rule == "budget 1000 ms"
    assert any("latency of the derived network is not measured" in line for line in warnings)
    assert (folder / "tensorrt-rtx-fp16-1" / "derived.plan").stat().st_size > 1000
    assert result.deployed["derived"]["engine"] == str(folder / "tensorrt-rtx-fp16-1/derived.plan")
    (line,) = [line for line in result.summary() if line.startswith("not measured: ")]
    assert "this machine has none" in line
    assert f"adapt bench {folder / 'tensorrt-rtx-fp16-1/derived.plan'} " in line


@pytest.fixture(scope="module")
def rtx_table(made: Path, on_cpu: Path) -> Path:
    """The table of the run on the CPU, as if a GPU's TensorRT-RTX had been measured."""

    def pretend(path: Path) -> None:
        shutil.copy(on_cpu / "costs.sqlite", path)
        with CostTable.open(path, writable=True) as table:
            certificate = table.certificate
        with closing(sqlite3.connect(path)) as connection, connection:
            there = {"runtime": "tensorrt-rtx", "precision": "fp16", "threads": 0}
            there |= {"device": "a GPU elsewhere", "tail": "tensor-nms"}
            text = json.dumps({**asdict(table.conditions), **there})
            connection.execute("UPDATE meta SET value = ? WHERE key = 'conditions'", (text,))
        with CostTable.open(path, writable=True) as table:
            table.store("certificate", certificate)  # it is of these rows, and these conditions

    return once(made / "rtx.sqlite", pretend)


def test_what_this_machine_cannot_measure_is_said_before_the_first_stage(
    for_latency: Recipe, tmp_path: Path
) -> None:
    for device, message in (
        ({"runtime": "tensorrt-rtx"}, "needs an NVIDIA GPU.*pass the table with --costs"),
        ({"runtime": "tensorrt"}, "tensorrt"),
        ({"runtime": "ort-cuda"}, "CUDAExecutionProvider.*pass the table with --costs"),
        ({"runtime": "torch", "precision": "fp16"}, "holds fp32 weights.*choose fp32"),
        ({"name": "another CPU"}, "is for another CPU, .*pass the table with --costs"),
    ):
        with pytest.raises(AdaptError, match=message):
            run(for_latency.with_device(**device), tmp_path / "out")  # type: ignore[arg-type]
    assert not list((tmp_path / "out").iterdir())


def test_a_file_that_loses_too_much_stops_the_run_and_is_left_for_study(
    for_latency: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AP of a detector that was hardly trained says nothing, so it is made up."""
    aps = iter([50.0, 40.0])  # PyTorch, fp16
    monkeypatch.setattr("bench.acceptance.ap_gate.Gate.ap", lambda *_: next(aps))
    changes = {
        "search": {"choice": "scores", "cost": "madds", "target": "1G"},
        "finetune": {"shared_epochs": 1, "teacher_weight": 6},
    }
    recipe = for_latency.with_device(precision="fp16").changed(changes, "the test")
    with pytest.raises(
        AdaptError, match=r"AP drops by 10.00 .* more than device.max_ap_drop = 0.5"
    ):
        run(recipe, folder / "madds")
    assert (folder / "madds/ort-cpu-fp16-1/refused/derived.onnx").is_file()
    assert not (folder / "madds/ort-cpu-fp16-1/derived.onnx").exists()
    for name in ("derived", "source"):  # both start from what all networks share
        _, described = read_detector_info(folder / f"madds/{name}.safetensors")
        start = file_hash(folder / "madds/start.safetensors")
        assert (described["start_sha256"], described["teacher_sha256"]) == (start, start)
    assert not (folder / "madds/search").exists()  # scores of the start need none
    assert read_json(folder / "madds/scores.json", "scores")["certificate"]["tau"] is not None


def test_the_prediction_is_corrected_and_compared_with_the_minimum(
    for_latency: Recipe, folder: Path
) -> None:
    result = run(for_latency, folder)
    rows = read_json(folder / "arch.json", "architecture")["costs"]
    assert result.predicted_ms == {"derived": rows["corrected_ms"]}
    assert result.bench is not None
    least = result.bench.entries[0].latency.min_ms
    told = f"{rows['corrected_ms']:.2f} ms predicted, {least:.2f} ms measured (minimum)"
    assert any(told in line for line in result.summary())
