"""Kill commands at random moments, let them go on, and compare with what nobody disturbed.

    python tests/kills.py kills.json --kills 20

Results of `search`, `finetune` and `run` (of multiply-adds) must be the same to the last bit; of
`profile`, whose latencies are measured, every row that a killed one left must stay as it was.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from adapt.data.synthetic import generate
from cli import app

sys.path.insert(0, str(Path(__file__).parent))
from core_parts import TINY_SPACE

RECIPE = """
name = "tiny"
init = "scratch"
data = {root = "data", workers = 0}
space = {preset = "tiny.toml"}
input = {height = 64, width = 64}
finetune = {epochs = 6, batch_size = 2, warmup_steps = 0}
detector = {fpn_width = 4, head_depth = 0, score_threshold = 0.001, detections = 5}
device = {rounds = 2, max_ap_drop = 100.0}
compute.checkpoint_minutes = 0.0
search.warmup_epochs = 2
search.weights = {epochs = 6, batch_size = 2, warmup_steps = 0}
"""
Results = Callable[[Path], Mapping[str, Any]]


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "tiny.toml").write_text(TINY_SPACE)
    generate(folder / "data", seed=5, train=4, val=1, size=(128, 128))
    return folder


def table(folder: Path) -> Mapping[str, Any]:
    path = folder / "costs.sqlite"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path)) as connection:
        return {row[0]: row[1:] for row in connection.execute("SELECT * FROM cost")}


def searched(folder: Path) -> Mapping[str, Any]:
    content = torch.load(folder / "search" / "supernet.pt", weights_only=True)
    return {"step": content["step"], "states": content["states"]}


def trained(*names: str) -> Results:
    return lambda folder: {name: load_file(folder / name) for name in names}


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


COMMANDS: dict[str, tuple[str, Results]] = {
    "profile": ("profile recipe.toml --out costs.sqlite", table),
    "search": ("search recipe.toml --out search", searched),
    "finetune": (
        "finetune recipe.toml --arch mobilenet_v2 --out d.safetensors",
        trained("d.safetensors"),
    ),
    "run": (
        "run recipe.toml --out run",
        trained("run/derived.safetensors", "run/source.safetensors"),
    ),
}


def start(command: str, folder: Path) -> int:
    """Start a command in a process of its own, which need not import anything any more."""
    child = os.fork()
    if child:
        with suppress(OSError):  # whichever is first
            os.setpgid(child, child)
        return child
    os.setpgid(0, 0)
    os.chdir(folder)
    with (folder / "log.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = 1
    try:
        app(command.split(), standalone_mode=False)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def finished(child: int, within: float = float("inf")) -> int | None:
    """The exit code of a process; None if it was killed, with those it began, after a time."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def survives(name: str, folder: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill a command, let it go on, and tell whether that made a difference."""
    command, results = COMMANDS[name]
    calm, disturbed = folder / "calm", folder / "killed"
    begun = time.monotonic()
    assert finished(start(command, calm)) == 0, (calm / "log.txt").read_text()[-2000:]
    seconds, killed, kept = time.monotonic() - begun, 0, True
    while killed < kills:
        before = results(disturbed) if name == "profile" else {}
        # Two kills within the time that one needs: it goes on from the middle of what is left.
        if finished(start(command, disturbed), chance.uniform(0, seconds / 2)) is not None:
            break
        killed += 1
        kept &= name != "profile" or before.items() <= results(disturbed).items()
    code = finished(start(command, disturbed))
    if name == "profile":
        equal = kept and results(calm).keys() == results(disturbed).keys()
    else:
        equal = code == 0 and same(results(calm), results(disturbed))
    return {"kills": killed, "seconds": round(seconds, 2), "ended": code == 0, "same": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="of every command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("calm", "killed"):
            prepare(Path(temporary, name))
        found = {name: survives(name, Path(temporary), options.kills, chance) for name in COMMANDS}
    options.out.write_text(json.dumps({"seed": options.seed, **found}, indent=2) + "\n")
    print(options.out.read_text())


if __name__ == "__main__":
    main()
