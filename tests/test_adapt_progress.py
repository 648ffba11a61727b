"""Progress of long work, as logs show it."""

import io
import subprocess
import sys

import pytest

from adapt.errors import AdaptError
from adapt.progress import ProgressLines, console_stage, part_of


@pytest.fixture
def clock(monkeypatch):
    """Seconds that have passed, to be set."""
    now = [0.0]
    monkeypatch.setattr("adapt.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then_says_what_is_done_and_what_is_left(clock, capsys):
    report = ProgressLines("finetune", seconds=30)
    for step in range(1, 101):
        clock[0] = step - 1
        report(step, 100, f"loss {step}")
    assert capsys.readouterr().err.splitlines() == [
        "finetune: 31 of 100, loss 31, 0:00:30 elapsed, 0:01:09 left",
        "finetune: 61 of 100, loss 61, 0:01:00 elapsed, 0:00:39 left",
        "finetune: 91 of 100, loss 91, 0:01:30 elapsed, 0:00:09 left",
    ]


def test_time_left_of_resumed_work_is_told_by_the_rate_of_this_run(clock, capsys):
    report = ProgressLines("search", seconds=0)
    clock[0] = 100  # to load the data
    report(900, 1000)
    clock[0] = 110
    report(910, 1000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "search: 900 of 1000, 0:01:40 elapsed"
    assert second == "search: 910 of 1000, 0:01:50 elapsed, 0:01:30 left"


def test_short_work_prints_its_end_only(capsys):
    with console_stage("eval") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == "eval: 0 s\n"


@pytest.mark.parametrize(
    ("is_terminal", "environment"), [(False, {"FORCE_COLOR": "1"}), (True, {"TERM": "dumb"})]
)
def test_logs_in_colour_and_dumb_terminals_get_lines(is_terminal, environment, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", written)
    for name, value in {"ADAPT_PROGRESS_SECONDS": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with console_stage("search") as progress:
        progress(1, 2, "loss 3.0")
    assert written.getvalue() == "search: 1 of 2, loss 3.0, 0:00:00 elapsed\nsearch: 0 s\n"


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_bad_interval_is_refused(monkeypatch, text):
    monkeypatch.setenv("ADAPT_PROGRESS_SECONDS", text)
    refused = pytest.raises(AdaptError, match="ADAPT_PROGRESS_SECONDS must be a number of seconds")
    with refused, console_stage("eval"):
        pass


def test_lines_reach_a_log_while_the_work_goes_on(tmp_path):
    log = tmp_path / "log"
    code = (
        "import os, sys\n"
        "from adapt.progress import console_stage\n"
        "with console_stage('finetune') as progress:\n"
        "    progress(1, 3, 'loss 2.0')\n"
        "    sys.stderr = None\n"
        "    os._exit(0)\n"  # nothing that is still in a buffer is written
    )
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, "-c", code],
            env={"ADAPT_PROGRESS_SECONDS": "0", "PYTHONPATH": ":".join(sys.path)},
            stderr=file,
            check=True,
        )
    assert log.read_text() == "finetune: 1 of 3, loss 2.0, 0:00:00 elapsed\n"


def test_parts_of_a_work_are_reported_as_one_that_never_goes_back():
    told = []
    for number, total in enumerate((4, 10)):
        progress = part_of(lambda done, of, note="": told.append(done / of), number, 2)
        for done in range(total + 1):
            progress(done, total)
    assert told == sorted(told)
    assert (told[0], told[4], told[-1]) == (0, 0.5, 1)
