"""Do several processes search what one does, and how much faster?

    python -m bench.figures.search_processes RECIPE --processes 2

One process with one thread, one with as many threads as there are processes, and as many processes
with one thread each take the same steps on the same batches; the last ones also with BatchNorm
statistics of their own, which is faster and another result.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bench.latency.provenance import device_description
from search.recipe.costs import madds_cost
from search.recipe.recipe import Recipe
from search.supernet.bilevel import BilevelSearch
from search.train.heap import freed_memory_kept
from search.train.session import Session
from search.train.world import joined_world


def take_steps(recipe: Recipe, steps: int, out: Path) -> None:
    """Alternate both kinds of steps; write their seconds, and alpha and beta, to ``out``."""
    with joined_world() as world, freed_memory_kept(world.device):
        train = recipe.split(recipe.data.train)
        cost = madds_cost(recipe, len(train.class_names))
        search = BilevelSearch(recipe, train, cost, Session(world))
        batches = [search.batches(half, 0) for half in (0, 1)]
        seconds: dict[str, list[float]] = {"arch": [], "weight": []}
        for step in range(steps + 1):
            weight_batch, arch_batch = map(next, batches)
            start = time.perf_counter()
            search.arch_step(arch_batch, step)
            between = time.perf_counter()
            search.weight_step(step, weight_batch)
            seconds["arch"].append(between - start)
            seconds["weight"].append(time.perf_counter() - between)
        if world.is_main:
            choices = [p.tolist() for p in search.arch_parameters]
            out.write_text(json.dumps({"seconds": seconds, "choices": choices}))


def run(recipe: str, options: list[str], processes: int, threads: int) -> dict[str, Any]:
    """Take the steps in processes of their own and return what they wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        module = "bench.figures.search_processes"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={processes}", "-m", module]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        arguments = [recipe, *options, f"--here={out}"]
        subprocess.run([*command, *arguments], env=environment, check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe; its space and detector are used.")],
    processes: Annotated[int, typer.Option(min=2, help="Processes that share a batch.")] = 2,
    batch: Annotated[int, typer.Option(help="Images per step of all processes.")] = 4,
    steps: Annotated[int, typer.Option(help="Timed steps of each kind.")] = 8,
    grid: Annotated[int, typer.Option(help="Width grid; 1 is the full Table I.")] = 1,
    sync: Annotated[bool, typer.Option(help="Whether BatchNorm sees the whole batch.")] = True,
    here: Annotated[Path | None, typer.Option(help="Take the steps and write to this.")] = None,
) -> None:
    """Print seconds per image and the largest difference of alpha and beta as JSON."""
    loaded = Recipe.load(recipe).with_grid(grid).with_search(cost="madds", warmup_epochs=0)
    loaded = loaded.with_search(weights=replace(loaded.search.weights, batch_size=batch))
    loaded = loaded.with_compute(sync_batch_norm=sync)
    if here:
        take_steps(loaded, steps, here)
        return
    options = [f"--{n}={v}" for n, v in (("batch", batch), ("steps", steps), ("grid", grid))]
    own = [*options, "--no-sync"]
    runs = {
        "1 process, 1 thread": run(recipe, options, 1, 1),
        f"1 process, {processes} threads": run(recipe, options, 1, processes),
        f"{processes} processes, 1 thread": run(recipe, options, processes, 1),
        f"{processes} processes, own statistics": run(recipe, own, processes, 1),
    }
    first = [torch.tensor(p) for p in runs["1 process, 1 thread"]["choices"]]
    results = {}
    for name, found in runs.items():
        differences = [
            float((torch.tensor(p) - one).abs().max())
            for p, one in zip(found["choices"], first, strict=True)
        ]
        results[name] = {
            "largest_difference": max(differences),
            **{
                f"{kind}_s_per_image": round(min(seconds[1:]) / batch, 4)
                for kind, seconds in found["seconds"].items()
            },
        }
    moved = max(float(one.abs().max()) for one in first)
    content = {**results, "largest_choice": moved, "batch": batch, **device_description()}
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    typer.run(main)
