"""What was killed at any moment goes on and ends as what nobody disturbed; see `kills.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kills import COMMANDS

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks so that kills come within a second")
def test_killed_commands_lose_nothing(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    command = [sys.executable, str(ROOT / "tests" / "kills.py"), str(out), "--kills", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment)
    found = json.loads(out.read_text())
    del found["seed"]
    assert set(found) == set(COMMANDS)
    for outcome in found.values():
        assert outcome["kills"] == 3
        assert outcome["same"]
