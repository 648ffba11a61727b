"""Processes end with the command that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

TRAINS = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from adapt.progress import silent
from search.train.pool import run_jobs

@dataclass(frozen=True)
class Endless:
    name: str

def work(job, progress, warn):
    Path(job.name).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    run_jobs([Endless("a"), Endless("b")], work, 2, silent, print)
"""
MEASURES = """
import os, time
from pathlib import Path
from pebble import ProcessPool
from adapt.parent import end_with_parent
from bench.latency.workers import process_context

def work(name):
    Path(name).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with ProcessPool(2, context=process_context(), initializer=end_with_parent) as pool:
        for one in [pool.schedule(work, (name,)) for name in ("a", "b")]:
            one.result()
"""


SECONDS = 60.0
COMMAND = """
import os, signal, sys, time
import cli
from pathlib import Path

def endless():
    temporary = Path("half")
    try:
        temporary.write_text("half")
        Path("begun").write_text("begun")
        time.sleep(600)
    finally:
        temporary.unlink()

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.app.command("endless")(endless)
cli.app(["endless"])
"""


def eventually(happens) -> bool:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.05)
    return False


def processes(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                found.append(int(file.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are listed in Linux's way")
@pytest.mark.parametrize(
    ("program", "how"),
    [
        pytest.param(TRAINS, signal.SIGKILL, id="trains-SIGKILL"),
        pytest.param(TRAINS, signal.SIGINT, id="trains-SIGINT"),
        pytest.param(MEASURES, signal.SIGTERM, id="measures-SIGTERM"),
    ],
)
def test_nothing_of_a_command_outlives_it(
    program: str, how: signal.Signals, tmp_path: Path
) -> None:
    file = tmp_path / "program.py"
    file.write_text(program)
    command = subprocess.Popen([sys.executable, file], cwd=tmp_path, start_new_session=True)
    try:
        both = [tmp_path / "a", tmp_path / "b"]
        assert eventually(lambda: all(one.is_file() and one.read_text() for one in both))
        os.kill(command.pid, how)
        command.wait(SECONDS)
        assert eventually(lambda: not processes(command.pid)), processes(command.pid)
    finally:
        for left in processes(command.pid):
            os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
def test_a_command_that_is_asked_to_end_cleans_up_and_says_how_it_ended(
    how: signal.Signals, tmp_path: Path
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    with command:
        try:
            assert eventually((tmp_path / "begun").exists)
            command.send_signal(how)
            _, told = command.communicate(timeout=SECONDS)
        finally:
            command.kill()
    assert command.returncode == 128 + how
    assert told.startswith("stopped; ")
    assert "Traceback" not in told
    assert not (tmp_path / "half").exists()
