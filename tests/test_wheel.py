"""The distribution holds what it should and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*command, str(out)], cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_top_level_names_are_exactly_the_five(wheel_names: list[str]) -> None:
    names = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert names == {"adapt", "search", "export", "bench", "cli.py"}


@pytest.mark.parametrize("folder", ["adapt/data", "bench/report"])
def test_templates_of_pages_are_in_the_wheel(wheel_names: list[str], folder: str) -> None:
    assert f"{folder}/page.html" in wheel_names


@pytest.mark.parametrize("folder", ["adapt/spaces", "search/recipe/presets"])
def test_presets_are_in_the_wheel(wheel_names: list[str], folder: str) -> None:
    presets = [str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / folder).glob("*.toml")]
    assert presets
    assert set(presets) <= set(wheel_names)
