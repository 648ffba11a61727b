"""Kill commands at random moments, let them go on, and compare with what nobody disturbed.

    python tests/kills.py kills.json --kills 20
    sudo python tests/kills.py full.json --full-disks 5

The second fills a disk instead, wherever the command happens to write, and frees it again: each
command must end in one sentence, and go on. It mounts file systems in memory, which takes Linux
and its root. What is trained, exported or evaluated must be the same to the last bit; of
measurements, every row that a killed command left must stay as it was, and all must be there in
the end.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from safetensors.torch import load_file

from adapt.data.synthetic import generate
from cli import app

sys.path.insert(0, str(Path(__file__).parent))
from core_parts import TINY_SPACE

RECIPE = """
name = "tiny"
init = "scratch"
data = {root = "data", test = "test", workers = 0}
space = {preset = "tiny.toml"}
input = {height = 64, width = 64}
finetune = {epochs = 6, batch_size = 2, warmup_steps = 0}
detector = {fpn_width = 4, head_depth = 0, score_threshold = 0.001, detections = 5}
device = {rounds = 2, max_ap_drop = 100.0}
compute.checkpoint_minutes = 0.0
search.warmup_epochs = 2
search.weights = {epochs = 6, batch_size = 2, warmup_steps = 0}
"""
SCORED = RECIPE.replace('init = "scratch"', "").replace("tiny.toml", "mobilenet_v2_slim")
STUDY = """
arms = [
    {network = "width", factor = 0.5},
    {network = "expansion", factor = 2, name = "thin"},
]
seeds = 2
drop_after = 0
"""
ORPHANS_SECONDS = 30.0
Results = Callable[[Path], Mapping[str, Any]]


def prepare(folder: Path) -> Path:
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "scored.toml").write_text(SCORED)
    (folder / "tiny.toml").write_text(TINY_SPACE)
    (folder / "study.toml").write_text(STUDY)
    generate(folder / "data", seed=5, train=4, val=1, test=1, size=(128, 128))
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


def scored(folder: Path) -> Mapping[str, Any]:
    content = json.loads((folder / "scores.json").read_text())
    return {key: content[key] for key in ("scores", "certificate")}


def exported(folder: Path) -> Mapping[str, Any]:
    """Return the graph and its parameters, without the versions and names of its description."""
    model = onnx.load(folder / "d.onnx")
    return {"graph": model.graph.SerializeToString(deterministic=True)}


def benched(folder: Path) -> Mapping[str, Any]:
    entries = json.loads((folder / "report" / "report.json").read_text())["entries"]
    return {entry["name"]: entry["metrics"] for entry in entries}


def studied(folder: Path) -> Mapping[str, Any]:
    arms = json.loads((folder / "study" / "study.json").read_text())["arms"]
    weights = {path.name: load_file(path) for path in folder.glob("study/trials/*.safetensors")}
    return {"ap": {arm["name"]: arm["ap"] for arm in arms}, **weights}


def same(one: Any, other: Any) -> bool:
    """Whether two results are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@dataclass(frozen=True)
class Killed:
    """A command that is killed.

    Attributes:
        command: With its options.
        results: Returns what it wrote.
        needs: Commands whose results it reads, by their names.
        measured: Whether its results are times, of which only those may be the same that were
            there already when it was killed.
    """

    command: str
    results: Results
    needs: tuple[str, ...] = ()
    measured: bool = False


COMMANDS = {
    "profile": Killed("profile recipe.toml --out costs.sqlite", table, measured=True),
    "certify": Killed(
        "costs certify recipe.toml costs.sqlite --detectors 8", table, ("profile",), measured=True
    ),
    "search": Killed("search recipe.toml --out search", searched),
    "finetune": Killed(
        "finetune recipe.toml --arch mobilenet_v2 --out d.safetensors", trained("d.safetensors")
    ),
    "source": Killed(
        "finetune scored.toml --arch mobilenet_v2 --out source.safetensors",
        trained("source.safetensors"),
    ),
    "score": Killed(
        "score scored.toml --from source.safetensors --networks 10 --out scores.json",
        scored,
        ("source",),
    ),
    "export": Killed("export d.safetensors --out d.onnx", exported, ("finetune",)),
    "bench": Killed(
        "bench d.onnx --data data --split val --rounds 2 --out report",
        benched,
        ("finetune", "export"),
    ),
    "study": Killed("study recipe.toml --study study.toml --jobs 2 --out study", studied),
    "run": Killed(
        "run recipe.toml --out run", trained("run/derived.safetensors", "run/source.safetensors")
    ),
}


def log_of(folder: Path) -> Path:
    """What the commands in a folder told; beside it, for its disk may be full."""
    return folder.with_name(f"{folder.name}.log")


def start(command: str, folder: Path) -> int:
    """Start a command in a process of its own, which need not import anything any more."""
    child = os.fork()
    if child:
        with suppress(OSError):  # whichever is first
            os.setpgid(child, child)
        return child
    os.setpgid(0, 0)
    os.chdir(folder)
    with log_of(folder).open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    code = 1
    try:
        code = app(command.split(), standalone_mode=False) or 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def finished(child: int, within: float = float("inf")) -> int | None:
    """The exit code of a process; None if it was killed after a time, and those it began ended."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)  # it alone: what it has started must end by itself
    os.waitpid(child, 0)
    end = time.monotonic() + ORPHANS_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            return None
        time.sleep(0.02)
    raise SystemExit(f"processes of a killed command live on: ps -o pid,args -g {child}")


def undisturbed(killed: Killed, folder: Path) -> tuple[Path, Path, float]:
    """Return a folder before a command, one after it, and the seconds that it took."""
    fresh, calm = folder / "fresh", folder / "calm"
    prepare(fresh)
    for needed in killed.needs:
        run(COMMANDS[needed].command, fresh)
    shutil.copytree(fresh, calm)
    begun = time.monotonic()
    run(killed.command, calm)
    return fresh, calm, time.monotonic() - begun


def survives(name: str, folder: Path, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill a command, let it go on, and tell whether that made a difference.

    When it ends before it is killed, it begins again in a new folder.
    """
    killed = COMMANDS[name]
    fresh, calm, seconds = undisturbed(killed, folder)
    expected = killed.results(calm)
    done, rounds, equal = 0, 0, True
    while done < kills:
        disturbed, rounds = folder / f"killed-{rounds}", rounds + 1
        shutil.copytree(fresh, disturbed)
        # Two kills within the time that one needs: it goes on from the middle of what is left.
        while (
            done < kills
            and finished(start(killed.command, disturbed), chance.uniform(0, seconds / 2)) is None
        ):
            done += 1
            if killed.measured:
                left = killed.results(disturbed)
        run(killed.command, disturbed)
        found = killed.results(disturbed)
        equal &= keeps(left, found, expected) if killed.measured else same(expected, found)
    return {"kills": done, "rounds": rounds, "seconds": round(seconds, 2), "same": equal}


def survives_full_disks(
    name: str, folder: Path, times: int, chance: random.Random
) -> dict[str, Any]:
    """Run a command on a disk with too little space, then with enough, and tell how that went."""
    filled = COMMANDS[name]
    fresh, calm, _ = undisturbed(filled, folder)
    expected = filled.results(calm)
    told, full, equal = list[str](), 0, True
    for number in range(times):
        disk = folder / f"disk-{number}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", disk], check=True)
        try:
            written = used_by(calm, disk)
            needed = used_by(fresh, disk)
            space = chance.randrange(needed, max(written, needed + 1))
            resized(disk, f"{space}k")
            code = finished(start(filled.command, disk))
            log = log_of(disk).read_text()
            left = filled.results(disk) if filled.measured else {}
            if code:
                full += 1
                sentences = [line for line in log.splitlines() if line.startswith("error: ")]
                if code != 1 or "Traceback" in log or len(sentences) != 1:
                    told.append(log[-2000:])
            resized(disk, "1g")
            run(filled.command, disk)
            found = filled.results(disk)
            equal &= keeps(left, found, expected) if filled.measured else same(expected, found)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)
    return {"disks": times, "full": full, "no sentence": told, "same": equal}


def used_by(folder: Path, disk: Path) -> int:
    """Put the content of a folder on an otherwise empty disk; return the KiB that it takes."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(folder, disk, dirs_exist_ok=True)
    usage = shutil.disk_usage(disk)
    return usage.used // 1024


def resized(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


def keeps(left: Mapping[str, Any], found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether all rows are there, and those that were stay as they were."""
    return left.items() <= found.items() and found.keys() == expected.keys()


def run(command: str, folder: Path) -> None:
    """Run a command that must succeed."""
    if finished(start(command, folder)) != 0:
        raise SystemExit(f"{command} failed:\n{log_of(folder).read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="of every command")
    parser.add_argument("--full-disks", type=int, default=0, help="of every command, no kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS), help="which, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    chance = random.Random(options.seed)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.commands.split(","):
            folder = Path(temporary, name)
            folder.mkdir()
            if options.full_disks:
                found[name] = survives_full_disks(name, folder, options.full_disks, chance)
            else:
                found[name] = survives(name, folder, options.kills, chance)
            options.out.write_text(json.dumps({"seed": options.seed, **found}, indent=2) + "\n")
            print(name, found[name], flush=True)


if __name__ == "__main__":
    main()
