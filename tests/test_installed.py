"""The wheel works where nothing else is installed, and from any folder."""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from adapt.data.synthetic import generate

REPOSITORY = Path(__file__).parents[1]
Run = Callable[..., str]
pytestmark = pytest.mark.slow


def output(command: Sequence[str | Path], folder: Path) -> str:
    """What a program prints in a folder that knows nothing of the checkout or of weights."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"TORCH_HOME": str(folder / "cache"), "COLUMNS": "120"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the programs of a new environment are, into which only the wheel was installed."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    asked = subprocess.run(
        [*pip, "download", "--no-deps", "--dest", folder, "typer"], capture_output=True, text=True
    )
    if asked.returncode:
        pytest.skip(f"no package index: {asked.stderr.strip().splitlines()[-1]}")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    output(build, REPOSITORY)
    (wheel,) = folder.glob("adapt_detector-*.whl")
    output([*pip, "install", "--constraint", REPOSITORY / "constraints.txt", wheel], folder)
    yield folder / "venv" / "bin"
    shutil.rmtree(folder)  # six gigabytes


@pytest.fixture
def adapt(programs: Path, tmp_path: Path) -> Run:
    """Runs `adapt` in a folder with a data set."""
    generate(tmp_path / "data", train=24, val=8, test=8, size=(192, 256))
    return lambda *arguments: output([programs / "adapt", *arguments], tmp_path)


def test_commands_that_train_nothing_work(adapt: Run) -> None:
    assert "Everything at once" in adapt("--help")
    assert '"runtime ort-cpu"' in adapt("doctor", "--json")
    assert "images" in adapt("data", "check", "data", "--page", "page.html")
    assert "next" in adapt("init", "data", "--out", "mine.toml")
    assert "hours" in adapt("run", "mine.toml", "--init", "scratch", "--dry-run")


def test_the_demo_s_way_is_taken_to_its_report(adapt: Run, tmp_path: Path) -> None:
    """With random weights, which need no download, and trainings of one step."""
    few = ("--init", "scratch", "--limit-steps", "1", "--grid", "2", "--budgets", "90%")
    adapt("run", "demo", "--data", "data", "--out", "demo", *few)
    assert list((tmp_path / "demo").rglob("report.md"))
