"""How long do the steps of a search take on this machine, and how much memory do they need?

    python -m bench.search_steps RECIPE --batch 2

Every variant runs in a process of its own, so that its peak memory is its own, and the variants
take turns, so that a slow minute of the machine meets all of them. ``plain`` is the loop over
candidates that comes to mind first: feature maps in the default layout, outputs stacked and summed,
PyTorch's ReLU6, freed memory returned to the system. Two comparisons take minutes and are asked for
by name: ``--variant compile`` (its first step compiles), and individual blocks of the full Table I,
which fit with ``--variant "recompute operation"
--variant "individual blocks, recompute operation"``.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn

from adapt.artifacts import write_json
from adapt.operations import ReLU6
from adapt.supernet import MixedOperation
from bench.provenance import device_description
from search.bilevel import BilevelSearch
from search.costs import madds_cost
from search.heap import freed_memory_kept
from search.recipe import Recipe

Kind = Literal["weight", "arch"]
WARM_UP = 3  # memory grows in the first ones


def plain_mixed_operation(
    self: MixedOperation, x: Tensor, probabilities: Tensor, chosen: object, *_: object
) -> Tensor:
    """Return the output of the chosen candidate, or the sum of all, as Eq. 1 is written."""
    if isinstance(chosen, int):
        out: Tensor = self.ops[chosen](x)
        return out
    outputs = [p * op(x) for p, op in zip(probabilities, self.ops, strict=True)]
    return torch.stack(outputs).sum(0)


PLAIN = ("plain", "plain, memory kept")
CONTIGUOUS = {"channels_last": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": CONTIGUOUS,
    "plain, memory kept": CONTIGUOUS,
    "contiguous": CONTIGUOUS,
    "memory returned": {},
    "channels last": {},
    "recompute norms": {"recompute": "norms"},
    "recompute operation": {"recompute": "operation"},
    "recompute block": {"recompute": "block"},
    "bf16": {"amp": "bf16"},
    "bf16, recompute norms": {"amp": "bf16", "recompute": "norms"},
    "accumulate 2": {"accumulate": 2},
    "2 paths": {"paths": 2},
    "1 path": {"paths": 1},
    "all paths": {"paths": "all"},
    "individual blocks": {"mask": "individual"},
    "individual blocks, recompute operation": {"mask": "individual", "recompute": "operation"},
    "compile": {"compile": True},
}
USUAL: dict[Kind, tuple[str, ...]] = {
    "weight": (
        "plain",
        "plain, memory kept",
        "memory returned",
        "channels last",
        "bf16",
        "accumulate 2",
        "2 paths",
        "all paths",
    ),
    "arch": (
        "plain",
        "plain, memory kept",
        "contiguous",
        "memory returned",
        "channels last",
        "recompute norms",
        "recompute operation",
        "recompute block",
        "bf16",
        "bf16, recompute norms",
        "accumulate 2",
        "2 paths",
        "1 path",
    ),
}


def variant_of(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with the options of a variant."""
    options = dict(VARIANTS[name])
    search: dict[str, Any] = {}
    if "paths" in options:
        paths = options.pop("paths")
        search = {"weight_paths": paths, "arch_paths": paths}
    if "mask" in options:
        search["mask"] = options.pop("mask")
    parts = options.pop("accumulate", None)
    return recipe.with_search(**search).with_compute(**options).with_accumulate(search=parts)


def time_steps(recipe: Recipe, kind: Kind, name: str, steps: int) -> dict[str, Any]:
    """Take some steps to warm up and ``steps`` more of one kind.

    Returns:
        Seconds of the very first step and of the timed ones, and the process's peak memory in GB.
    """
    if name in PLAIN:
        MixedOperation.forward = plain_mixed_operation  # type: ignore[assignment]
        ReLU6.forward = nn.ReLU6.forward  # type: ignore[assignment, method-assign]
    train = recipe.split(recipe.data.train)
    wanted = variant_of(recipe, name)
    search = BilevelSearch(wanted, train, madds_cost(wanted, len(train.class_names)))
    returned = name in ("plain", "memory returned")
    with nullcontext() if returned else freed_memory_kept(search.world.device):
        first, *seconds = _seconds(search, kind, steps + WARM_UP)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    return {"first": first, "seconds": seconds[WARM_UP - 1 :], "peak_memory_gb": peak}


def _seconds(search: BilevelSearch, kind: Kind, steps: int) -> Iterator[float]:
    batches = search.batches(("weight", "arch").index(kind), 0)
    for step in range(steps):
        batch = next(batches)
        start = time.perf_counter()
        if kind == "weight":
            search.weight_step(step, batch)
        else:
            search.arch_step(batch, step)
        yield time.perf_counter() - start


def summarise(runs: list[dict[str, Any]], plain: dict[str, Any] | None) -> dict[str, Any]:
    """Return median and minimum over all runs of a variant, and ratios to the plain loop."""
    seconds = [value for run in runs for value in run["seconds"]]
    found: dict[str, Any] = {
        "steps": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "first_s": round(min(run["first"] for run in runs), 2),
        "peak_memory_gb": round(max(run["peak_memory_gb"] for run in runs), 2),
    }
    if plain:
        found["times_faster_median"] = round(plain["median_s"] / found["median_s"], 2)
        found["times_faster_min"] = round(plain["min_s"] / found["min_s"], 2)
    return found


def main(
    recipe: Annotated[str, typer.Argument(help="Recipe; its space and detector are used.")],
    batch: Annotated[int, typer.Option(help="Images per step.")] = 2,
    steps: Annotated[int, typer.Option(help="Timed steps of each variant and round.")] = 5,
    rounds: Annotated[int, typer.Option(help="How often all variants take their turn.")] = 3,
    grid: Annotated[int, typer.Option(help="Width grid; 1 is the full Table I.")] = 1,
    variant: Annotated[list[str] | None, typer.Option(help="Variants; all but compile.")] = None,
    kind: Annotated[str, typer.Option(help="Only weight or only arch steps.")] = "",
    here: Annotated[bool, typer.Option(help="One variant, in this process.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds and peak memory of weight and architecture steps as JSON."""
    loaded = Recipe.load(recipe).with_grid(grid).with_search(cost="madds")
    weights = replace(loaded.search.weights, batch_size=batch)
    loaded = loaded.with_search(weights=weights)
    kinds: list[Kind] = [one for one in ("weight", "arch") if kind in ("", one)]
    if here:
        assert variant
        print(json.dumps(time_steps(loaded, kinds[0], variant[0], steps)))
        return
    options = [f"--{n}={v}" for n, v in (("batch", batch), ("steps", steps), ("grid", grid))]
    command = [sys.executable, "-m", "bench.search_steps", recipe, *options, "--here"]
    runs: defaultdict[tuple[Kind, str], list[dict[str, Any]]] = defaultdict(list)
    for _ in range(rounds):
        for one in kinds:
            for name in variant or USUAL[one]:
                output = subprocess.check_output([*command, f"--kind={one}", f"--variant={name}"])
                runs[one, name].append(json.loads(output))
                print(one, name, runs[one, name][-1], file=sys.stderr, flush=True)
    results: dict[str, Any] = {}
    for (one, name), found in runs.items():
        group = results.setdefault(one, {})
        group[name] = summarise(found, group.get("plain"))
    content = {
        **results,
        "recipe": recipe,
        "batch": batch,
        "width_grid": grid,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **device_description(),
    }
    print(json.dumps(content, indent=2))
    if out:
        write_json(out, content)


if __name__ == "__main__":
    typer.run(main)
