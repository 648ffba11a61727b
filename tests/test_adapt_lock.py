import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapt.errors import AdaptError
from adapt.lock import alone
from bench.costs.selection import Shard
from bench.study.execution import Execution
from bench.study.run import StudyRun
from bench.study.spec import Arm, Study
from search.recipe.recipe import Recipe
from search.train.session import Session

HOLD = """
import sys, time
from pathlib import Path
from adapt.lock import alone
with alone(Path(sys.argv[1]), "wait"):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path):
    """Another process that has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_second_process_is_told_of_the_first(other, tmp_path: Path) -> None:
    with (
        pytest.raises(AdaptError, match=rf"is held by process {other.pid}; choose another"),
        alone(tmp_path / ".lock", "choose another folder"),
    ):
        pass


def test_a_killed_process_keeps_nobody_out(other, tmp_path: Path) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / ".lock").read_text() == str(other.pid)
    with alone(tmp_path / ".lock", "wait"):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def test_one_after_the_other_is_alone(tmp_path: Path) -> None:
    for _ in range(2):
        with alone(tmp_path / ".lock", "wait"):
            time.sleep(0)
    with pytest.raises(ValueError, match="inside"), alone(tmp_path / ".lock", "wait"):
        raise ValueError("inside")
    assert not (tmp_path / ".lock").exists()


def test_a_folder_has_one_study_and_its_shards_their_own(other, tmp_path: Path) -> None:
    study = Study((Arm("source"),), seeds=2)
    with pytest.raises(AdaptError, match="choose another place with --out"):
        StudyRun(study, Recipe(), tmp_path).execute()
    # A shard does not wait for it; without images it fails with another sentence.
    with pytest.raises(AdaptError) as caught:
        StudyRun(study, Recipe(), tmp_path, Execution(shard=Shard(1, 2))).execute()
    assert "held by" not in str(caught.value)


def test_a_training_has_its_place_alone(other, tmp_path: Path) -> None:
    with (
        pytest.raises(AdaptError, match=f"process {other.pid}"),
        Session().alone(tmp_path / ".lock"),
    ):
        pass
    with Session().alone(tmp_path / "new" / "detector.lock"):
        assert (tmp_path / "new" / "detector.lock").is_file()
