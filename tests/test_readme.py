"""What README tells people to type exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
INDENTED = re.findall(r"^    (adapt [^#\n]*)", README, flags=re.M)
INLINE = re.findall(r"`(adapt [a-z][^`]*)`", README)


@pytest.mark.parametrize("line", sorted({*INDENTED, *INLINE}))
def test_command_and_its_options_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    depth = 2 if words[0] in ("data", "costs") else 1
    result = CliRunner().invoke(app, [*words[:depth], "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.stdout


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z-]+)`?$", README, flags=re.M))
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, flags=re.M)


@pytest.mark.parametrize(
    "path", re.findall(r"`((?:adapt|search|export|bench)/[\w/]+\.py)`", README)
)
def test_file_of_the_tour_exists(path: str) -> None:
    assert (Path(__file__).parents[1] / path).is_file()


def test_no_placeholder_is_left() -> None:
    assert "@@" not in README
