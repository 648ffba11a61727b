"""Searches and fine-tunings that are killed, and those that several processes share."""

import json
import multiprocessing
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import TINY_SPACE, assert_same_state
from safetensors.torch import load_file
from training_process import train, train_apart

from adapt.data.synthetic import generate
from adapt.detector.file import read_detector_info
from adapt.errors import AdaptError
from adapt.progress import silent
from search.recipe.recipe import Recipe
from search.train.log import read_log
from search.train.world import World, joined_world

SCRIPT = Path(__file__).parent / "training_process.py"
ROOT = SCRIPT.parents[1]


@pytest.fixture
def folder(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    """Data and a recipe that writes a checkpoint after every step."""
    generate(tmp_path / "data", seed=5, train=16, val=2, size=(128, 128))
    recipe = tiny_recipe.with_compute(checkpoint_minutes=0.0)
    space = tmp_path / "space.toml"
    space.write_text(TINY_SPACE)
    recipe = replace(recipe, space=replace(recipe.space, preset=str(space)))
    write(tmp_path, recipe)
    return tmp_path


def write(folder: Path, recipe: Recipe) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    return folder


def stored(folder: Path) -> Recipe:
    return Recipe.from_dict(json.loads((folder / "recipe.json").read_text()))


FORKS = multiprocessing.get_context("forkserver")
# They are not imported again by every process, which takes longer than the trainings.
FORKS.set_forkserver_preload(["search.supernet.run", "search.train.finetune"])


def start(kind: str, folder: Path, steps: int = 0, **environment: str) -> ForkServerProcess:
    arguments = (kind, folder, steps, environment)
    process = FORKS.Process(target=train_apart, args=arguments, daemon=True)
    process.start()
    return process


def finish(process: ForkServerProcess) -> None:
    process.join(timeout=120)
    assert process.exitcode == 0


def whole(kind: str, folder: Path) -> Path:
    """Result folder of a run that nobody disturbed."""
    threads = torch.get_num_threads()
    try:
        train(kind, folder, folder / "whole", silent, World(0, 1, torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    return folder / "whole"


def killed_at_random(kind: str, folder: Path, kills: int, seed: int) -> list[int]:
    """Kill a run again and again, then let it end; return the steps at which it was killed."""
    chance = random.Random(seed)
    steps = []
    for _ in range(kills):
        process = start(kind, folder, chance.randint(1, 2))
        mark = folder / "started"
        while not mark.exists() and process.is_alive():
            time.sleep(0.002)
        time.sleep(0.05 * chance.random())  # into the next step, or into a checkpoint
        if not process.is_alive():  # it was through
            break
        process.kill()
        process.join()
        steps.append(int(mark.read_text()))
        mark.unlink()
    finish(start(kind, folder))
    return steps


def states(out: Path) -> Any:
    return torch.load(out / "supernet.pt", weights_only=True)["states"]


def check_search(folder: Path, kills: int, seed: int) -> None:
    expected = whole("search", folder)
    steps = killed_at_random("search", folder, kills, seed)
    assert len(steps) >= min(kills, 2)
    out = folder / "out"
    # Weights, alpha, beta, optimizers, schedule, scalers, lambda, random numbers.
    assert_same_state(states(out), states(expected))
    assert read_log(out / "search.jsonl") == read_log(expected / "search.jsonl")
    assert not list(out.glob(".*"))  # of a checkpoint that was being written


def check_finetune(folder: Path, kills: int, seed: int) -> None:
    expected = whole("finetune", folder)
    assert killed_at_random("finetune", folder, kills, seed)
    found, wanted = (load_file(out / "d.safetensors") for out in (folder / "out", expected))
    assert_same_state(found, wanted)


def test_killed_search_ends_bit_for_bit_like_an_undisturbed_one(folder: Path) -> None:
    check_search(folder, kills=2, seed=0)


def test_killed_finetuning_ends_bit_for_bit_like_an_undisturbed_one(folder: Path) -> None:
    check_finetune(folder, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_kills_change_nothing(folder: Path, seed: int) -> None:
    recipe = stored(folder)
    weights = replace(recipe.search.weights, epochs=10)
    write(
        folder,
        replace(
            recipe,
            search=replace(recipe.search, weights=weights, warmup_epochs=3),
            finetune=replace(recipe.finetune, epochs=10),
        ),
    )
    check_search(folder, kills=12, seed=seed)
    shutil.rmtree(folder / "whole")
    shutil.rmtree(folder / "out")
    check_finetune(folder, kills=8, seed=seed)


def run_together(kind: str, folder: Path, processes: int) -> None:
    """Start what torchrun starts, without its own process and three imports of PyTorch."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    for process in [start(kind, folder, **address, **rank) for rank in ranks]:
        finish(process)


def run_by_torchrun(kind: str, folder: Path, processes: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command = [*torchrun, f"--nproc-per-node={processes}", sys.executable, str(SCRIPT)]
    done = subprocess.run(
        [*command, kind, str(folder)], env=environment, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()


def assert_nearly_same(first: dict[str, Any], second: dict[str, Any], tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_two_processes_search_what_one_does_with_the_whole_batch(folder: Path) -> None:
    recipe = stored(folder)
    (folder / "float64").touch()
    weights = replace(recipe.search.weights, epochs=2, batch_size=4)
    how = {"weights": weights, "warmup_epochs": 1, "target": "0.00098G", "target_rate": 1.0}
    write(folder, recipe.with_search(**how))
    expected = whole("search", folder)
    run_by_torchrun("search", folder, 2)
    out = folder / "out"
    assert_nearly_same(states(expected)["detector"], states(out)["detector"], 1e-7)
    assert states(out)["arch_optimizer"]["state"][0]["step"] == 2
    one, two = (read_log(path / "search.jsonl")[-1] for path in (expected, out))
    for name in ("weight_loss", "arch_loss", "expected_cost", "cost_weight"):
        assert two[name] == pytest.approx(one[name], rel=1e-7)


def test_two_processes_finetune_what_one_does_with_the_whole_batch(folder: Path) -> None:
    recipe = stored(folder)
    (folder / "float64").touch()
    how: Any = {"val_epochs": 1, "keep": "best", "ema": 0.9, "recalibrate": 8}
    finetune = replace(recipe.finetune, epochs=1, batch_size=8, **how)
    data = replace(recipe.data, root=str(folder / "data"))
    detector = replace(recipe.detector, score_threshold=0.0)  # or it finds nothing yet
    write(folder, replace(recipe, finetune=finetune, data=data, detector=detector))
    expected = whole("finetune", folder)
    run_together("finetune", folder, 2)
    found, wanted = (load_file(out / "d.safetensors") for out in (folder / "out", expected))
    assert_nearly_same(wanted, found, 1e-7)
    one, two = (
        read_detector_info(out / "d.safetensors")[1]["written"]
        for out in (expected, folder / "out")
    )
    for name in ("val_ap", "val_ap_before_recalibration"):
        assert one[name] > 0
        assert two[name] == pytest.approx(one[name])


def test_search_goes_on_with_another_number_of_processes(folder: Path) -> None:
    recipe = stored(folder)
    (folder / "float64").touch()
    weights = replace(recipe.search.weights, epochs=2, batch_size=4)
    write(folder, recipe.with_search(weights=weights, warmup_epochs=1))
    expected = whole("search", folder)
    process = start("search", folder, 2)
    while not (folder / "started").exists() and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    run_together("search", folder, 2)
    assert_nearly_same(states(expected)["detector"], states(folder / "out")["detector"], 1e-7)


def test_two_processes_search_in_bf16(folder: Path) -> None:
    recipe = stored(folder).with_compute(amp="bf16", recompute="norms")
    weights = replace(recipe.search.weights, epochs=1, batch_size=4)
    write(folder, recipe.with_search(weights=weights, warmup_epochs=0))
    run_together("search", folder, 2)
    (entry,) = read_log(folder / "out" / "search.jsonl")
    assert entry["weight_loss"] > 0
    assert states(folder / "out")["detector"]["backbone.body.stem.1.running_mean"].abs().max() > 0


def test_batches_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(AdaptError, match="a batch of 3 images cannot be shared out equally among"):
        World(0, 2, torch.device("cpu")).share(3)


def test_processes_without_an_address_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(AdaptError, match=r"MASTER_ADDR is not set; start them with torchrun"):
        joined_world().__enter__()


def test_tasks_of_a_slurm_step_are_processes_and_a_batch_script_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    with joined_world() as world:
        assert (world.rank, world.size) == (0, 1)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(AdaptError, match="2 processes were started, but MASTER_ADDR"):
        joined_world().__enter__()
