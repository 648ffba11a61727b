"""Do several processes search what one does, and how much faster?

    python -m bench.figures.search_processes RECIPE --processes 2

With N processes, three runs take the same steps on the same batches: one process with one thread,
one process with N threads, and N processes with one thread each. A fourth run has N processes that
do not share BatchNorm statistics, which is faster, and another result.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adapt.command_line import grouped
from bench.latency.provenance import device_description
from search.recipe.recipe import Recipe
from search.recipe.search_cost import madds_cost
from search.supernet.bilevel import BilevelSearch
from search.train.heap import freed_memory_kept
from search.train.session import Session
from search.train.world import joined_world


@dataclass(frozen=True)
class StepOptions:
    """Which steps every run takes."""

    recipe: Annotated[str, typer.Argument(help="Recipe; its space and detector are used.")]
    batch: Annotated[int, typer.Option(help="Images per step of all processes.")] = 4
    steps: Annotated[int, typer.Option(help="Timed steps of each kind.")] = 8
    grid: Annotated[int, typer.Option(help="Width grid; 1 is the full Table I.")] = 1

    def load(self) -> Recipe:
        """Return the recipe, for multiply-adds and with architecture steps from the start."""
        recipe = Recipe.load(self.recipe).with_grid(self.grid)
        recipe = recipe.with_search(cost="madds", warmup_epochs=0)
        weights = replace(recipe.search.weights, batch_size=self.batch)
        return recipe.with_search(weights=weights)

    def arguments(self) -> list[str]:
        """Return these options as another process is told them."""
        numbers = (("batch", self.batch), ("steps", self.steps), ("grid", self.grid))
        return [self.recipe, *(f"--{name}={value}" for name, value in numbers)]


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


def run(arguments: list[str], processes: int, threads: int) -> dict[str, Any]:
    """Take the steps in other processes and return what they wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        module = "bench.figures.search_processes"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={processes}", "-m", module]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([*command, *arguments, f"--here={out}"], env=environment, check=True)
        content: dict[str, Any] = json.loads(out.read_text())
    return content


def summarise(runs: dict[str, dict[str, Any]], batch: int) -> dict[str, Any]:
    """Return seconds per image of every run, and how far it is from the first run's result."""
    expected = [torch.tensor(p) for p in next(iter(runs.values()))["choices"]]
    results: dict[str, Any] = {}
    for name, content in runs.items():
        differences = [
            float((torch.tensor(p) - q).abs().max())
            for p, q in zip(content["choices"], expected, strict=True)
        ]
        results[name] = {
            "largest_difference": max(differences),
            **{
                f"{kind}_s_per_image": round(min(seconds[1:]) / batch, 4)
                for kind, seconds in content["seconds"].items()
            },
        }
    moved = max(float(p.abs().max()) for p in expected)
    return {**results, "largest_choice": moved}


@grouped
def main(
    options: StepOptions,
    processes: Annotated[int, typer.Option(min=2, help="Processes that share a batch.")] = 2,
    sync: Annotated[bool, typer.Option(help="Whether BatchNorm sees the whole batch.")] = True,
    here: Annotated[Path | None, typer.Option(help="Take the steps and write to this.")] = None,
) -> None:
    """Print seconds per image and the largest difference of alpha and beta as JSON."""
    if here:
        take_steps(options.load().with_compute(sync_batch_norm=sync), options.steps, here)
        return
    arguments = options.arguments()
    runs = {
        "1 process, 1 thread": run(arguments, 1, 1),
        f"1 process, {processes} threads": run(arguments, 1, processes),
        f"{processes} processes, 1 thread": run(arguments, processes, 1),
        f"{processes} processes, own statistics": run([*arguments, "--no-sync"], processes, 1),
    }
    content = {**summarise(runs, options.batch), "batch": options.batch, **device_description()}
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    typer.run(main)
