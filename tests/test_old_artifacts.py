"""What an earlier version wrote is still read, and means what it meant.

`make_old_artifacts.py` made the files with that version's own commands, and kept its answers.
"""

import csv
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from adapt.architecture import Architecture
from cli import app

OLD = Path(__file__).parent / "data" / "made_at_852bcc6"
ANSWERS = json.loads((OLD / "answers.json").read_text())


@pytest.fixture(autouse=True)
def _another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the tests run, it is not where the files were made."""
    monkeypatch.setattr("search.recipe.search_cost.processor_name", lambda: "another processor")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old artifacts that commands may write to."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def ok(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def test_cost_table_shows_the_same_rows_and_certificate(old: Path) -> None:
    assert ok("costs", "show", old / "costs.sqlite") == ANSWERS["show"]


def test_cost_table_exports_every_row(old: Path) -> None:
    assert run("costs", "export", old / "costs.sqlite", "--out", old / "costs.csv").exit_code == 0
    rows = list(csv.DictReader((old / "costs.csv").read_text().splitlines()))
    assert len(rows) == ANSWERS["profile"]["measured_now"]
    assert all(float(row["min_ms"]) > 0 for row in rows)


def test_search_stands_for_the_same_network(old: Path) -> None:
    new = old / "new.json"
    found = ok("derive", old / "supernet.pt", "--costs", old / "costs.sqlite", "--out", new)
    assert costs_of(found) == pytest.approx(costs_of(ANSWERS["argmax"]))
    assert Architecture.load(new) == Architecture.load(old / "arch.json")


def costs_of(network: dict[str, Any]) -> list[float]:
    return [network[name] for name in ("madds", "predicted_ms", "corrected_ms")]


def test_front_and_budgets_give_the_same_networks(old: Path) -> None:
    derive = ("derive", old / "supernet.pt", "--costs", old / "costs.sqlite")
    front = ok(*derive, "--pareto", 3)["networks"]
    for found, expected in zip(front, ANSWERS["front"]["networks"], strict=True):
        within = ok(*derive, "--budget", f"{expected['corrected_ms'] + 1e-6:.6f}ms")
        assert costs_of(found) == costs_of(within) == pytest.approx(costs_of(expected))
        assert found["score"] == pytest.approx(expected["score"])


def test_graph_detects_the_same(old: Path) -> None:
    results = old / "results.json"
    ok("eval", old / "detector.onnx", "--data", old / "data", "--results", results)
    for found, expected in zip(json.loads(results.read_text()), ANSWERS["results"], strict=True):
        assert found["category_id"] == expected["category_id"]
        assert found["score"] == pytest.approx(expected["score"], abs=1e-4)
        assert found["bbox"] == pytest.approx(expected["bbox"], abs=0.05)


def test_graph_is_of_its_detector_and_what_is_exported_now(old: Path) -> None:
    detector, graph, images = old / "detector.safetensors", old / "detector.onnx", old / "data"
    ok("export", detector, "--out", old / "new.onnx")
    for other in (detector, old / "new.onnx"):
        report = ok("parity", graph, other, images / "images")
        assert report["match"]["matched"] >= 20  # in 5 images; if one differs, the command fails


@pytest.mark.parametrize("folder", ["stopped", "."])  # begun, and finished
def test_search_with_another_penalty_does_not_go_on_in_silence(folder: str, old: Path) -> None:
    # Since method 2 the logarithm of Eq. 4 is that of the searchable part of the cost.
    out = old / folder
    before = (out / "supernet.pt").read_bytes()
    sentence = refusal(
        *("search", old / "recipe.toml", "--costs", old / "costs.sqlite", "--out", out)
    )
    assert "method (version 1, this adapt has version 2; see the changelog)" in sentence
    assert "choose another --out, or delete it" in sentence
    assert (out / "supernet.pt").read_bytes() == before


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Trained on another machine, the same networks differ by what rounding came to."""
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.001)


def test_stopped_finetuning_goes_on_to_the_same_end(old: Path) -> None:
    out = old / "stopped" / "d.safetensors"
    ok("finetune", old / "recipe.toml", "--arch", old / "arch.json", "--out", out)
    assert not out.with_suffix(".checkpoint.pt").exists()  # it was read, not passed over
    assert_close(load_file(out), load_file(OLD / "detector.safetensors"))


SEARCH = "search recipe.toml --costs costs.sqlite --out stopped"
FINETUNE = "finetune recipe.toml --arch arch.json --out stopped/d.safetensors"


def test_stopped_training_of_another_recipe_names_the_adapt_and_what_to_do(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = old / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("warmup_steps = 0", "warmup_steps = 1"))
    monkeypatch.chdir(old)
    sentence = refusal(*FINETUNE.split())
    assert "belongs to another run (by adapt 0.1.0; its recipe" in sentence
    assert "choose another --out, or delete it" in sentence


def refusal(*command: object) -> str:
    result = run(*command)
    assert result.exit_code == 1, result.output
    return result.stderr.splitlines()[-1]  # a search tells first how certain its table is


LATER = {"version": 2, "made_with": {"adapt-detector": "0.2.0"}}


def later_table(path: Path) -> None:
    rows = [(json.dumps(value), key) for key, value in LATER.items()]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("UPDATE meta SET value = ? WHERE key = ?", rows)


def later_checkpoint(path: Path) -> None:
    torch.save({**torch.load(path), **LATER}, path)


def later_architecture(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **LATER}))


def later_detector(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        content = {**json.loads(file.metadata()["adapt"]), **LATER}
    save_file(load_file(path), path, metadata={"adapt": json.dumps(content)})


def later_graph(path: Path) -> None:
    model = onnx.load(path)
    content = {**json.loads(model.metadata_props[0].value), **LATER}
    onnx.helper.set_model_props(model, {"adapt": json.dumps(content)})
    onnx.save(model, path)


def later_engine(path: Path) -> None:
    path.touch()
    path.with_name(f"{path.name}.json").write_text(json.dumps({"format": "adapt-engine", **LATER}))


def later_run(path: Path) -> None:
    path.write_text(json.dumps({"format": "adapt-run", **LATER}))


REFUSED = {
    "costs.sqlite": (later_table, "costs show costs.sqlite"),
    "supernet.pt": (later_checkpoint, "derive supernet.pt"),
    "stopped/supernet.pt": (later_checkpoint, SEARCH),
    "stopped/d.checkpoint.pt": (later_checkpoint, FINETUNE),
    "arch.json": (later_architecture, FINETUNE),
    "detector.safetensors": (later_detector, "export detector.safetensors"),
    "detector.onnx": (later_graph, "eval detector.onnx --data data"),
    "detector.plan": (later_engine, "predict detector.plan data/images"),
    "run.json": (later_run, "run recipe.toml --out ."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_later_format_is_refused_with_its_version_and_what_to_do(
    name: str, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, command = REFUSED[name]
    edit(old / name)
    monkeypatch.chdir(old)
    sentence = refusal(*command.split())
    assert sentence.startswith(f"error: {name} has ")
    assert "format version 2, this adapt reads version 1" in sentence
    assert "open it with the adapt that wrote it (0.2.0), or write it again" in sentence
