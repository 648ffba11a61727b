"""The commands, as a user meets them: real runs in a subprocess-free runner, and bad input."""

import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import TINY_SPACE
from typer.testing import CliRunner, Result

from adapt.architecture import Architecture, Block
from adapt.data.coco import CocoSplit
from adapt.sources import mobilenet_v2
from adapt.space import Operation
from bench.latency.timing import Protocol
from cli import app

COMMANDS = {
    *("doctor", "weights", "profile", "search", "derive", "finetune"),
    *("eval", "export", "score", "predict", "parity", "bench", "report", "run", "demo"),
}
OPTION = re.compile(r"^[ │]+(--[a-z-]+)", re.MULTILINE)
RECIPE = """
name = "tiny"
[data]
root = "{root}"
workers = 0
[space]
width_grid = 400
[input]
height = 64
width = 96
[detector]
fpn_width = 8
head_depth = 0
nms_candidates = 50
[search]
warmup_epochs = 1
cost = "madds"
[search.weights]
epochs = 2
batch_size = 2
warmup_steps = 0
[finetune]
epochs = 1
batch_size = 4
warmup_steps = 0
[device]
rounds = 2
"""


@pytest.fixture
def recipe(tmp_path: Path, tiny_data: CocoSplit) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(root=data_root(tiny_data)))
    return path


@pytest.fixture
def small_recipe(tmp_path: Path, tiny_data: CocoSplit) -> Path:
    return written_recipe(tmp_path, tiny_data)


def written_recipe(folder: Path, data: CocoSplit) -> Path:
    """A recipe whose space has few units to measure, and no weights to start from."""
    (folder / "space.toml").write_text(TINY_SPACE)
    space = f'preset = "{folder / "space.toml"}"'
    text = RECIPE.format(root=data_root(data)).replace("width_grid = 400", space)
    path = folder / "small.toml"
    path.write_text(text.replace("[data]", 'init = "scratch"\n[data]', 1))
    return path


def data_root(data: CocoSplit) -> Path:
    return data.annotations.parents[1]


@pytest.fixture(scope="module", autouse=True)
def _short_measurements() -> Iterator[None]:
    """How well is measured, and on how quiet a machine, is a matter of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name, round_ms in {"profiler.CPU_PROTOCOL": 0.1, "certify.WHOLE_PROTOCOL": 1.0}.items():
            short = Protocol(2, round_ms=round_ms, retries=0, drift=100.0)
            patch.setattr(f"bench.costs.{name}", short)
        patch.setattr("adapt.machine.load_per_core", lambda: 0.0)  # of other tests
        patch.setattr("adapt.cost.resolution.TOLERATED", 1.0)  # operations of microseconds
        patch.setattr("bench.costs.certify.DETECTORS", 4)  # of a run
        yield


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tiny_data: CocoSplit) -> tuple[Path, Path]:
    """A cost table in two parts."""
    folder = tmp_path_factory.mktemp("shards")
    recipe, parts = written_recipe(folder, tiny_data), (folder / "1.sqlite", folder / "2.sqlite")
    for number, part in enumerate(parts, 1):
        ok("profile", recipe, "--shard", f"{number}/2", "--out", part)
    return parts


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: CocoSplit) -> tuple[Any, ...]:
    """The command of a run for latency, and what it told."""
    folder = tmp_path_factory.mktemp("run")
    recipe = written_recipe(folder, tiny_data)
    latency = recipe.read_text().replace('cost = "madds"', 'cost = "latency"\ntarget = "1000ms"')
    recipe.write_text(latency)
    command = ("run", recipe, "--out", folder / "out", "--limit-steps", 1)
    return command, ok(*command)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_a_busy_machine_is_told_of_before_it_measures_and_not_before_an_error(
    tmp_path: Path, tiny_data: CocoSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.machine.load_per_core", lambda: 3.0)
    recipe, table = written_recipe(tmp_path, tiny_data), tmp_path / "costs.sqlite"
    assert "busy" not in run("profile", recipe, "--out", table, "--shard", "3/2").stderr
    told = run("profile", recipe, "--out", table, "--shard", "1/40")
    assert told.exit_code == 0, told.output
    assert told.stderr.count("busy (3.0 programs computed per core") == 1


def test_help_imports_no_heavy_library() -> None:
    code = "import sys, cli; sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "command",
    sorted(COMMANDS),
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"adapt {command}" in result.stdout


@pytest.mark.parametrize("columns", [40, 80])
@pytest.mark.parametrize("command", [*sorted(COMMANDS), "costs certify", "data check", ""])
def test_help_shows_every_option_in_narrow_terminals(command: str, columns: int) -> None:
    arguments = [*command.split(), "--help"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)}).stdout
    wide = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}).stdout
    assert "…" not in shown
    assert {"--help"} <= set(OPTION.findall(wide)) <= set(OPTION.findall(shown))


def test_commands_carry_a_detector_from_search_to_report(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = json.loads(json.dumps(str(Path(root_of(recipe)))))
    options = ("--paths", "1:2", "--recompute", "norms", "--accumulate", 2, "--bi-sampling")
    found = ok("search", recipe, "--out", out, "--limit-steps", 1, "--target", "9G", *options)
    assert Path(found["plot"]).stat().st_size > 10_000
    ok("derive", out / "supernet.pt", "--out", out / "arch.json")
    detector = out / "arch.safetensors"
    tuned = ("--limit-steps", 1, "--amp", "bf16")
    ok("finetune", recipe, "--arch", out / "arch.json", "--out", detector, *tuned)
    ok("export", detector, "--out", out / "arch.onnx")
    evaluated = ok("eval", out / "arch.onnx", "--data", data)
    assert (evaluated["split"], evaluated["max_detections"]) == ("val", 100)
    assert "ap50" in evaluated
    both = [detector, out / "arch.onnx"]
    report = ok("bench", *both, "--data", data, "--rounds", 2, "--out", out / "report")
    assert [entry["runner"]["runtime"] for entry in report["entries"]] == ["torch", "ort-cpu"]
    assert (out / "report" / "report.png").stat().st_size > 10_000
    names = {path.stem for path in (out / "report" / "detections").iterdir()}
    assert len(names) == 2
    assert "The detections" not in (out / "report" / "index.html").read_text()


def root_of(recipe: Path) -> str:
    return next(line.split('"')[1] for line in recipe.read_text().splitlines() if "root" in line)


def test_run_is_resumed_and_reuses_what_is_there(finished_run: tuple[Any, ...]) -> None:
    command, first = finished_run
    second, out = ok(*command), command[3]
    assert set(first["stages"].values()) == {"ran"}
    assert {n for n, state in second["stages"].items() if state == "ran"} == {"bench"}
    derived = first["networks"]["derived"]
    assert 0 < derived["predicted_ms"] < 1000
    assert Architecture.load(out / "arch.json") == Architecture.from_dict(derived["architecture"])
    assert json.loads((out / "arch.json").read_text())["rule"] == "budget 1000 ms, verified"
    assert first["networks"] == second["networks"]


def test_run_ends_with_a_page_that_is_written_again_from_its_files(
    finished_run: tuple[Any, ...],
) -> None:
    out = finished_run[0][3]
    page = out / "report" / "index.html"
    first = page.read_text()
    assert "derived reaches" in first
    assert "What the search expects its network to cost" in first
    assert "whole detectors certify the cost table" in first
    assert first.count("<td>derived</td><td>1000.00</td>") == 1
    page.unlink()
    assert ok("report", out) == {"page": str(page)}
    assert page.read_text() == first


def test_run_refuses_a_folder_of_another_recipe(
    finished_run: tuple[Any, ...], tmp_path: Path
) -> None:
    _, recipe, *options = finished_run[0]
    other = tmp_path / "small.toml"
    other.write_text(recipe.read_text().replace("fpn_width = 8", "fpn_width = 16"))
    result = run("run", other, *options)
    assert result.exit_code == 1
    assert "holds the stage 'profile' of another recipe" in result.output


def test_shards_of_a_profile_merge_into_a_table_that_shows_itself(
    small_recipe: Path, shards: tuple[Path, Path], tmp_path: Path
) -> None:
    merged = ok("costs", "merge", *shards, "--out", tmp_path / "all.sqlite")
    planned = ok("profile", small_recipe, "--out", tmp_path / "all.sqlite", "--dry-run")
    assert planned["to_measure"] == planned["estimated_seconds"] == 0
    assert planned["distinct_units"] + planned["boundaries"] == merged["rows"]
    assert merged["slowest_machine"] >= 0
    shown = ok("costs", "show", tmp_path / "all.sqlite", "--plot", tmp_path / "all.png")
    assert shown["runtime"] == "ort-cpu"
    assert run("costs", "export", shards[0], "--out", tmp_path / "a.csv").exit_code == 0


def test_profile_dry_run_measures_nothing_but_a_sample(recipe: Path, tmp_path: Path) -> None:
    planned = ok("profile", recipe, "--out", tmp_path / "costs.sqlite", "--dry-run")
    assert planned["to_measure"] == planned["distinct_units"] + planned["boundaries"]
    assert planned["estimated_seconds"] > 0
    assert not list(tmp_path.glob("*.sqlite*"))


def test_dry_run_for_a_gpu_elsewhere_says_that_the_time_is_unknown(recipe: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    gpu = ("--runtime", "tensorrt-rtx", "--precision", "fp16", "--batch", 2)
    planned = ok("profile", recipe, *gpu, "--grid", 2, "--dry-run")
    assert planned["estimated_seconds"].startswith("unknown: ")
    assert planned["to_measure"] > 0
    result = run("profile", recipe, *gpu)
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_search_wants_a_certificate_or_to_be_told_otherwise(
    small_recipe: Path, tmp_path: Path
) -> None:
    recipe = small_recipe
    table, out = tmp_path / "costs.sqlite", tmp_path / "out"
    profiled = ok("profile", recipe, "--precision", "int8", "--out", table)
    assert (profiled["conditions"], profiled["inferred_now"]) == ("ort-cpu int8 batch 1", 0)
    recipe.write_text(recipe.read_text().replace("[device]", '[device]\nprecision = "int8"'))
    search = ("search", recipe, "--cost", "latency", "--costs", table, "--out", out)
    refused = run(*search, "--limit-steps", 1)
    assert refused.exit_code == 1
    assert "has no certificate for its present rows" in refused.stderr
    told = run(*search, "--limit-steps", 1, "--uncertified")
    assert told.exit_code == 0
    assert "costs.sqlite: not certified" in told.stderr
    derive = ("derive", out / "supernet.pt", "--costs", table)
    assert "pass --uncertified" in run(*derive).stderr
    certificate = ok("costs", "certify", recipe, table, "--detectors", 4)
    assert certificate["detectors"] == 4
    derived = run(*derive, "--json")
    assert "over 4 detectors MAPE" in derived.stderr
    outside = run(*derive, "--budget", "1000ms")
    assert "1000 ms lies outside of the" in " ".join(outside.stderr.split())
    assert {"predicted_ms", "corrected_ms"} <= set(json.loads(derived.stdout))


@pytest.mark.parametrize("command", ["search", "finetune", "run"])
def test_dry_run_estimates_and_says_how(command: str, small_recipe: Path) -> None:
    extra = ("--arch", "mobilenet_v2") if command == "finetune" else ()
    estimate = ok(command, small_recipe, *extra, "--dry-run")
    assert estimate["a100_hours"] if command == "finetune" else "meta device" in estimate["method"]


def foreign_architecture(folder: Path) -> Path:
    source = mobilenet_v2()
    blocks = (Block(2, 17, (Operation(3, 6),)), *source.blocks[1:])
    path = folder / "foreign.json"
    Architecture(source.source, 32, 16, source.taps, blocks).save(path)
    return path


def foreign_database(folder: Path) -> Path:
    path = folder / "other.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE t (x)")
    return path


BAD: list[tuple[Callable[[Path, Path], list[object]], int, str]] = [
    (lambda r, t: ["run", "nonsense"], 1, "unknown recipe 'nonsense'"),
    (lambda r, t: ["run", t / "no.toml"], 1, "does not exist"),
    (lambda r, t: ["run", r, "--data", t / "no"], 1, "does not exist"),
    (lambda r, t: ["run", "paper"], 1, "names no data set"),
    (lambda r, t: ["search", r, "--cost", "watts"], 2, "watts"),
    (lambda r, t: ["search", r, "--cost", "latency"], 1, "needs a cost table"),
    (lambda r, t: ["search", r, "--cost", "latency", "--costs", t / "no"], 1, "does not exist"),
    (
        lambda r, t: ["search", r, "--cost", "latency", "--costs", foreign_database(t)],
        1,
        "is not an adapt cost-table file",
    ),
    (lambda r, t: ["search", r, "--out", "/proc/x"], 1, "cannot write"),
    (lambda r, t: ["search", r, "--target", "4ms"], 1, "target '4ms' does not fit cost 'madds'"),
    (lambda r, t: ["search", r, "--target", "1M"], 1, "no network costs 1M or less, the cheapest"),
    (lambda r, t: ["search", r, "--paths", "none"], 1, "--paths must be like all, 2 or 1:all"),
    (lambda r, t: ["search", r, "--accumulate", "3"], 1, "accumulate must divide batch_size"),
    (lambda r, t: ["search", r, "--amp", "fp8"], 2, "fp8"),
    (lambda r, t: ["derive", t / "no.pt"], 1, "does not exist"),
    (lambda r, t: ["derive", r], 1, "damaged or foreign"),
    (lambda r, t: ["finetune", r, "--arch", t / "no.json"], 1, "does not exist"),
    (lambda r, t: ["finetune", r, "--arch", foreign_architecture(t)], 1, "width 17"),
    (
        lambda r, t: ["finetune", r, "--arch", "mobilenet_v2", "--weights", t / "no.pth"],
        1,
        "do not exist",
    ),
    (
        lambda r, t: ["finetune", r, "--arch", "mobilenet_v2", "--out", "/proc/x/a.safetensors"],
        1,
        "cannot write",
    ),
    (lambda r, t: ["finetune", r, "--arch", "mobilenet_v2", "--init", "magic"], 2, "magic"),
    (lambda r, t: ["export", t / "no.safetensors"], 1, "does not exist"),
    (lambda r, t: ["export", r], 1, "not a readable safetensors file"),
    (lambda r, t: ["export", t / "no.safetensors", "--ap-gate", "1"], 1, "with --data"),
    (
        lambda r, t: ["finetune", r, "--arch", "mobilenet_v2", "--out", t],
        1,
        "it is a folder; name a file in it",
    ),
    (lambda r, t: ["export", t / "no.safetensors", "--ap-gate", "nan"], 2, "--ap-gate"),
    (lambda r, t: ["predict", t / "no.onnx", t], 1, "holds no image"),
    (lambda r, t: ["predict", t / "no.onnx", r], 1, "does not exist"),
    (lambda r, t: ["eval", t / "no.onnx", "--data", root_of(r)], 1, "does not exist"),
    (lambda r, t: ["bench", r, "--data", root_of(r)], 1, ".onnx"),
    (lambda r, t: ["data", "check", t], 1, "split"),
    (lambda r, t: ["demo", "--out", "/proc/x"], 1, "cannot write"),
    (lambda r, t: ["run", r, "--out", "/proc/x"], 1, "cannot write"),
    (lambda r, t: ["profile", r, "--out", "/proc/x/costs.sqlite"], 1, "cannot write"),
    (lambda r, t: ["profile", r, "--out", r], 1, "not a readable cost table"),
    (lambda r, t: ["profile", r, "--shard", "5/4"], 1, "--shard must be like 2/4"),
    (lambda r, t: ["profile", r, "--grid", "0"], 2, "grid"),
    (lambda r, t: ["profile", r, "--runtime", "tflite"], 2, "tflite"),
    (lambda r, t: ["costs", "show", t / "no.sqlite"], 1, "does not exist"),
    (lambda r, t: ["costs", "certify", r, t / "no.sqlite"], 1, "does not exist"),
    (lambda r, t: ["costs", "merge", t / "no.sqlite", "--out", t / "a"], 1, "does not exist"),
    (lambda r, t: ["weights", "vgg16"], 1, "unknown source backbone 'vgg16'"),
]


@pytest.mark.parametrize(("command", "code", "fragment"), BAD)
def test_bad_input_is_one_sentence(
    command: Callable[[Path, Path], list[object]],
    code: int,
    fragment: str,
    recipe: Path,
    tmp_path: Path,
) -> None:
    before = set(tmp_path.rglob("*"))
    result = run(*command(recipe, tmp_path))
    assert result.exit_code == code
    assert fragment in result.output
    assert "Traceback" not in result.output
    if code == 1:
        (sentence,) = result.stderr.strip().splitlines()
        assert sentence.startswith("error: ")
    left = {p.name for p in set(tmp_path.rglob("*")) - before}
    assert left <= {"foreign.json", "other.sqlite"}


def test_interrupted_command_says_how_to_go_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("search.recipe.recipe.load_split", interrupt)
    result = run("run", recipe)
    assert result.exit_code == 130
    assert "continue from their last checkpoint" in result.stderr


def test_data_check_reports_both_splits(recipe: Path) -> None:
    report = ok("data", "check", root_of(recipe))
    assert report["train"]["images"] == 8
    assert report["val"]["problems"] == []


def broken(folder: Path, recipe: Path, change: Callable[[dict[str, Any]], object]) -> list[object]:
    """Copy the data set with another train.json; return the command that trains on it."""
    root = folder / "broken"
    shutil.copytree(root_of(recipe), root)
    # The doubt about a long warm-up is of a training that starts, not of this one.
    recipe.write_text(recipe.read_text().replace("warmup_steps = 0", "warmup_steps = 500"))
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return ["finetune", recipe, "--arch", "mobilenet_v2", "--data", root]


def first_box(content: dict[str, Any], box: list[float]) -> None:
    content["annotations"][0]["bbox"] = box


def first_image(content: dict[str, Any], name: str) -> None:
    for image in content["images"]:
        image["file_name"] = name


BROKEN: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda c: c["annotations"][0].update(image_id=999), "999"),
    (lambda c: c["annotations"][0].update(category_id=77), "77"),
    (lambda c: first_box(c, [5, 5, 0, 9]), "of no size"),
    (lambda c: first_box(c, [900, 5, 9, 9]), "outside of its image"),
    (lambda c: first_box(c, [100, 5, 90, 9]), "sticks out of its image"),
    (lambda c: c.update(images=[], annotations=[]), "train.json"),
    (lambda c: c.pop("categories"), "categories"),
    (lambda c: first_image(c, "missing.jpg"), "missing.jpg"),
    (lambda c: first_image(c, "../annotations/val.json"), "val.json"),
]


@pytest.mark.parametrize(("change", "fragment"), BROKEN)
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_data_stop_a_training_with_one_sentence(
    change: Callable[[dict[str, Any]], object],
    fragment: str,
    workers: int,
    recipe: Path,
    tmp_path: Path,
) -> None:
    recipe.write_text(recipe.read_text().replace("workers = 0", f"workers = {workers}"))
    result = run(*broken(tmp_path, recipe, change), "--out", tmp_path / "out" / "d.safetensors")
    assert result.exit_code == 1
    (sentence,) = result.stderr.strip().splitlines()
    assert fragment in sentence
    assert not list(tmp_path.glob("out/*"))


def test_class_that_no_training_image_has_is_told_before_the_training(
    recipe: Path, tmp_path: Path
) -> None:
    def one_class(content: dict[str, Any]) -> None:
        kept = content["annotations"][0]["category_id"]
        boxes = [box for box in content["annotations"] if box["category_id"] == kept]
        content["annotations"] = boxes
        first_image(content, "missing.jpg")  # what comes after the warning is no matter here

    result = run(*broken(tmp_path, recipe, one_class), "--out", tmp_path / "d.safetensors")
    assert "no training teaches them" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_table_of_another_processor_is_refused_when_the_recipe_names_one(
    small_recipe: Path, shards: tuple[Path, Path]
) -> None:
    recipe = small_recipe
    recipe.write_text(recipe.read_text().replace("[device]", '[device]\nname = "Jetson Orin"'))
    result = run("search", recipe, "--cost", "latency", "--costs", shards[0], "--uncertified")
    assert result.exit_code == 1
    assert "(Jetson Orin)" in result.stderr


def with_huge_ids(content: dict[str, Any]) -> None:
    """Give images ids as `uuid4().int` does, and the first box a negative size."""
    for image in content["images"]:
        image["id"] += 2**127
    for entry in content["annotations"]:
        entry["image_id"] += 2**127
    first_box(content, [20, 20, -9, -9])


def test_repaired_data_train_and_tell_what_was_left_out(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[data]", "[data]\nrepair = true"))
    out = tmp_path / "d.safetensors"
    command = [*broken(tmp_path, recipe, with_huge_ids), "--out", out, "--limit-steps", 1]
    result = run(*command, "--init", "scratch")
    assert result.exit_code == 0
    assert out.is_file()
    assert "0 were cut at the border of their image and 1 left out" in result.stderr


def test_evaluation_refuses_or_tells_which_boxes_it_left_out(recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(root_of(recipe), root)
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    path.write_text(json.dumps(content))
    for command in ("eval", "bench"):
        refused = run(command, tmp_path / "no.onnx", "--data", root)
        assert refused.exit_code == 1
        assert "of no size; correct it, or set data.repair = true" in refused.stderr
        repaired = run(command, tmp_path / "no.onnx", "--data", root, "--repair")
        assert "0 were cut at the border of their image and 1 left out" in repaired.stderr
