"""Make every kind of artifact with the commands of another version of adapt.

What it writes is test data: later versions open it (`test_old_artifacts.py`). It was run like this:

    git worktree add ../adapt-852bcc6 852bcc6
    PYTHONPATH=. python tests/make_old_artifacts.py ../adapt-852bcc6 tests/data/made_at_852bcc6

`answers.json` keeps what that version told of its artifacts.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core_parts import TINY_SPACE

from adapt.data.synthetic import generate
from adapt.machine import processor_name

# Relative paths: artifacts keep none of a machine. A named device: any machine takes the table.
# A low threshold: a barely trained detector finds something.
RECIPE = f"""
name = "tiny"
init = "scratch"
data = {{root = "data", workers = 0}}
space = {{preset = "tiny.toml"}}
input = {{height = 64, width = 64}}
device = {{name = "{processor_name()}"}}
finetune = {{epochs = 6, batch_size = 2, warmup_steps = 0}}
detector = {{fpn_width = 4, head_depth = 0, score_threshold = 0.001, detections = 5}}
search.cost = "latency"
search.warmup_epochs = 2
search.weights = {{epochs = 6, batch_size = 2, warmup_steps = 0}}
"""
COMMANDS = {
    "profile": "profile recipe.toml --out costs.sqlite",
    "certify": "costs certify recipe.toml costs.sqlite --detectors 8",
    "show": "costs show costs.sqlite",
    "search": "search recipe.toml --costs costs.sqlite --out .",
    "argmax": "derive supernet.pt --costs costs.sqlite --out arch.json",
    "front": "derive supernet.pt --costs costs.sqlite --pareto 3 --out front",
    "finetune": "finetune recipe.toml --arch arch.json --out detector.safetensors",
    "export": "export detector.safetensors --out detector.onnx",
    "eval": "eval detector.onnx --data data --results results.json",
}
STOPPED = {  # at this checkpoint
    "search recipe.toml --costs costs.sqlite --out stopped": "stopped/supernet.pt",
    "finetune recipe.toml --arch arch.json --out stopped/d.safetensors": "stopped/d.checkpoint.pt",
}
LEFT_OUT = shutil.ignore_patterns("front", "results.json", "search.*", "*board*", ".*")


def make(checkout: Path, out: Path) -> None:
    """Run the commands of ``checkout`` in an empty folder and keep in ``out`` what they wrote."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "tiny.toml").write_text(TINY_SPACE)
        generate(folder / "data", seed=5, train=4, val=1, size=(128, 128))
        answers = {name: ran(command, checkout, folder) for name, command in COMMANDS.items()}
        answers["results"] = json.loads((folder / "results.json").read_text())
        for command, checkpoint in STOPPED.items():
            stop(command, checkout, folder, checkpoint)
        shutil.copytree(folder, out, ignore=LEFT_OUT)
    (out / "answers.json").write_text(json.dumps(answers, indent=2) + "\n")


def start(command: str, checkout: Path, folder: Path) -> "subprocess.Popen[str]":
    """Start a command of a checkout, whatever is installed."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    full = [sys.executable, "-m", "cli", *command.split(), "--json"]
    return subprocess.Popen(full, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def ran(command: str, checkout: Path, folder: Path) -> Any:
    """Return what a command answers."""
    process = start(command, checkout, folder)
    text, _ = process.communicate()
    assert process.returncode == 0, command
    return json.loads(text)


def stop(command: str, checkout: Path, folder: Path, checkpoint: str) -> None:
    """Kill a command as soon as it has written a checkpoint."""
    process = start(command, checkout, folder)
    while not (folder / checkpoint).exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, f"'{command}' ended before it could be stopped"


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
