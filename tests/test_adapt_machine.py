import os

import pytest

from adapt.command_line import warn_if_busy
from adapt.machine import MEASURED, busy, load_per_core, usable_cores


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.5, False), (1.5, True)])
def test_times_that_others_make_too_long_are_told(
    share: float, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (share * usable_cores(), 9.0, 9.0))
    assert load_per_core() == pytest.approx(share)
    assert bool(busy()) == told
    assert (MEASURED in busy(MEASURED)) == told
    warn_if_busy()
    assert (
        "(1.5 programs computed per core in the last minute)" in capsys.readouterr().err
    ) == told
