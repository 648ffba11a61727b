"""How long do the steps of a search take on this machine, and how much memory do they need?

    python -m bench.search_steps RECIPE --batch 2

Each kind of step runs in a process of its own, so that its peak memory is its own.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from adapt.coco import load_split
from bench.provenance import device_description
from search.bilevel import BilevelSearch
from search.costs import madds_cost
from search.recipe import Recipe

KINDS = ("weight", "arch")


def time_steps(recipe: Recipe, kind: str, steps: int) -> dict[str, Any]:
    """Take one step to warm up and ``steps`` more of one kind.

    Returns:
        Median and minimum of the seconds per step, and the process's peak memory in GB.
    """
    train = load_split(Path(recipe.data.root), recipe.data.train)
    search = BilevelSearch(recipe, train, madds_cost(recipe, len(train.class_names)))
    batches = search.batches(KINDS.index(kind), 0)
    seconds = []
    for step in range(steps + 1):
        batch = next(batches)
        start = time.perf_counter()
        if kind == "weight":
            search.weight_step(step, batch)
        else:
            search.arch_step(batch)
        seconds.append(time.perf_counter() - start)
    return {
        "steps": steps,
        "median_s": round(statistics.median(seconds[1:]), 3),
        "min_s": round(min(seconds[1:]), 3),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe; its space and detector are used.")],
    batch: Annotated[int, typer.Option(help="Images per step.")] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps of each kind.")] = 8,
    grid: Annotated[int, typer.Option(help="Width grid; 1 is the full Table I.")] = 1,
    kind: Annotated[str, typer.Option(help="Only this kind, in this process.")] = "",
) -> None:
    """Print seconds and peak memory of weight and architecture steps as JSON."""
    loaded = Recipe.load(recipe).with_grid(grid)
    weights = replace(loaded.search.weights, batch_size=batch)
    how = replace(loaded.search, weights=weights, cost="madds")
    if kind:
        print(json.dumps(time_steps(replace(loaded, search=how), kind, steps)))
        return
    options = [f"--{n}={v}" for n, v in (("batch", batch), ("steps", steps), ("grid", grid))]
    command = [sys.executable, "-m", "bench.search_steps", recipe, *options]
    results = {
        name: json.loads(subprocess.check_output([*command, f"--kind={name}"])) for name in KINDS
    }
    threads = torch.get_num_threads()
    print(json.dumps({**results, "threads": threads, **device_description()}, indent=2))


if __name__ == "__main__":
    typer.run(main)
