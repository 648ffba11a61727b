"""The distribution holds what it should and nothing else, and is the same wherever it is built."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
READ_AT_RUN_TIME = (
    "adapt/data/*.html",
    "bench/report/*.html",
    "adapt/spaces/*.toml",
    "search/recipe/presets/*.toml",
    "bench/study/studies/*.toml",
)


def build(source: Path, out: Path) -> dict[str, str]:
    """The SHA-256 of every archive that is built from a folder, by name, with this date inside."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where the archives of this checkout are, and their hashes."""
    out = tmp_path_factory.mktemp("dist")
    return out, build(REPOSITORY, out)


@pytest.fixture(scope="module")
def wheel_names(built: tuple[Path, dict[str, str]]) -> list[str]:
    (wheel,) = built[0].glob("*.whl")
    return zipfile.ZipFile(wheel).namelist()


def test_top_level_names_are_exactly_the_five(wheel_names: list[str]) -> None:
    names = {name.split("/")[0] for name in wheel_names if ".dist-info/" not in name}
    assert names == {"adapt", "search", "export", "bench", "cli.py"}


@pytest.mark.parametrize("pattern", READ_AT_RUN_TIME)
def test_presets_and_templates_are_in_the_wheel(wheel_names: list[str], pattern: str) -> None:
    files = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(pattern)}
    assert files
    assert files <= set(wheel_names)


def test_archives_are_the_same_bytes_when_built_from_the_source_archive(
    built: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """No folder, time or right of a file is in an archive."""
    out, hashes = built
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    (source / "PKG-INFO").unlink()  # hatchling would pack it beside the one that it writes
    for path in source.rglob("*"):
        os.utime(path)
        path.chmod(path.stat().st_mode & 0o700)
    assert len(hashes) == 2
    assert build(source, tmp_path / "dist") == hashes


def test_a_container_is_built_from_all_that_the_wheel_needs(
    built: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """`.dockerignore` lets single names of the top level through, and nothing else."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    for name in (line[1:] for line in lines if line.startswith("!")):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    assert (tmp_path / "constraints.txt").exists()
    (wheel,) = {name for name in built[1] if name.endswith(".whl")}
    assert build(tmp_path, tmp_path / "dist")[wheel] == built[1][wheel]
