"""Whole runs to their end, minutes each: what README promises of them (`make test-slow`)."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli import app

RECIPES = Path(__file__).parents[1] / "recipes"

pytestmark = pytest.mark.slow


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def metrics(content: dict[str, Any], name: str) -> dict[str, Any]:
    (entry,) = (e for e in content["bench"]["entries"] if e["name"] == name)
    found: dict[str, Any] = entry["metrics"]
    return found


def test_demo_derives_a_front_of_detectors_that_work_and_then_reuses_it(tmp_path: Path) -> None:
    first = run("demo", "--out", tmp_path / "demo")
    for name in first["networks"]:
        assert metrics(first, name)["ap50"] >= 0.60
    second = run("demo", "--out", tmp_path / "demo")
    assert {name for name, state in second["stages"].items() if state == "ran"} == {"bench"}


@pytest.mark.shared
def test_blood_cells_are_found_on_the_test_split(shared_data: Path, tmp_path: Path) -> None:
    recipe = RECIPES / "bccd-cpu.toml"
    found = run("run", recipe, "--data", shared_data / "bccd", "--out", tmp_path / "bccd")
    assert metrics(found, "derived")["ap"] >= 0.48
