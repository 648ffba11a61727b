"""Whatever happens in a step of a verification, the next ones run."""

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import time

import pytest

from bench.doctor.contained import Outcome, Reading, Step, contained, run_step


@pytest.mark.parametrize(
    ("reading", "passed", "text"),
    [
        (Reading("error", 0.5), True, "error 0.5"),
        (Reading("error", 0.5, 1.0), True, "error 0.5 <= 1"),
        (Reading("error", 1.5, 1.0), False, "error 1.5 not < 1"),
        (Reading("tau", 0.95, 0.9, at_least=True), True, "tau 0.95 >= 0.9"),
        (Reading("tau", 0.5, 0.9, at_least=True), False, "tau 0.5 not > 0.9"),
        (Reading("error", float("nan"), 1.0), False, "error nan not < 1"),
        (Reading("tau", float("nan"), 0.9, at_least=True), False, "tau nan not > 0.9"),
    ],
)
def test_a_number_is_held_against_its_limit(reading: Reading, passed: bool, text: str) -> None:
    assert reading.passed is passed
    assert str(reading) == text


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Step("raises", int, ("x",)), "ValueError: invalid literal"),
        (Step("exits", os._exit, (11,)), r"its process died \(exit code 11\)"),
        (Step("crashes", ctypes.string_at, (0,)), r"its process died \(exit code -\d+\)"),
        (Step("hangs", time.sleep, (60,), seconds=1), "took longer than 1 s and was stopped"),
        (Step("leaves", sys.exit, (3,)), "SystemExit: 3"),
    ],
    ids=lambda value: value.title if isinstance(value, Step) else "",
)
def test_a_step_that_goes_wrong_is_its_own_failure(step: Step, reason: str) -> None:
    outcome = run_step(step, passed=())
    assert outcome.status == "FAIL"
    assert re.search(reason, outcome.reason)
    assert contained(max, (1, 2), 30) == (2, "")  # others go on


def say_and_die() -> None:
    os.write(1, b"on stdout; ")
    os.write(2, b"the assertion of a library")
    os.abort()


def test_what_a_step_prints_stays_out_of_results_and_explains_a_crash(
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, reason = contained(say_and_die, (), 30)
    assert reason.endswith("on stdout; the assertion of a library")
    assert capfd.readouterr() == ("", "")


def test_a_step_needs_those_that_passed_and_one_that_cannot_be_says_why() -> None:
    step = Step("b", len, ((),), needs=("a",))
    assert run_step(step, passed=()) == Outcome("b", "SKIP", reason="needs a, which did not pass")
    assert run_step(Step("c", skip="no GPU"), passed=()).reason == "no GPU"


def test_interrupts_are_for_the_command_not_for_its_processes() -> None:
    assert contained(signal.getsignal, (signal.SIGINT,), 60) == (signal.SIG_IGN, "")


def test_an_interrupted_command_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        contained(time.sleep, (60,), 60)
    assert multiprocessing.active_children() == []
