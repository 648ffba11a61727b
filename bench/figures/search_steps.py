"""How long do the steps of a search take on this machine, and how much memory do they need?

    python -m bench.figures.search_steps RECIPE --batch 2

Every variant is compared with ``plain``, the straightforward loop over candidates: feature maps in
the default layout, outputs stacked and summed, PyTorch's ReLU6, freed memory returned to the
system. Each of the two runs in its own process, whose peak memory is then that of the variant. They
take turns step by step, and times are compared pair by pair, since other load on the machine
changes a step's time by half within a minute. Variants that take minutes run only if named:

    --variant compile                                    # its first step compiles
    --variant "individual blocks, recompute operation" --against "recompute operation"
"""

import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn

from adapt.artifacts import write_json
from adapt.command_line import grouped
from adapt.network.mixed import MixedOperation
from adapt.network.operations import ReLU6
from bench.latency.provenance import device_description
from search.recipe.recipe import Recipe
from search.recipe.search_cost import madds_cost
from search.supernet.bilevel import BilevelSearch
from search.train.heap import freed_memory_kept

Kind = Literal["weight", "arch"]
WARM_UP = 3  # untimed steps: memory still grows in them


def plain_mixed_operation(
    self: MixedOperation, x: Tensor, probabilities: Tensor, chosen: object, *_: object
) -> Tensor:
    """Return the output of the chosen candidate, or the sum of all, as Eq. 1 is written."""
    if isinstance(chosen, int):
        out: Tensor = self.ops[chosen](x)
        return out
    outputs = [p * op(x) for p, op in zip(probabilities, self.ops, strict=True)]
    return torch.stack(outputs).sum(0)


@dataclass
class Run:
    """Seconds of every step that a process took, and its peak memory."""

    seconds: list[float] = field(default_factory=list)
    peak_memory_gb: float = 0.0

    @property
    def timed(self) -> list[float]:
        """Seconds of the steps after the warm-up."""
        return self.seconds[WARM_UP:]


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
        "plain, memory kept",
        "memory returned",
        "channels last",
        "bf16",
        "accumulate 2",
        "2 paths",
        "all paths",
    ),
    "arch": (
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


def serve_steps(recipe: Recipe, kind: Kind, name: str) -> None:
    """Take a step for every line of the standard input and print its seconds; then the peak GB."""
    if name in PLAIN:
        MixedOperation.forward = plain_mixed_operation  # type: ignore[assignment]
        ReLU6.forward = nn.ReLU6.forward  # type: ignore[assignment, method-assign]
    train = recipe.split(recipe.data.train)
    variant = variant_of(recipe, name)
    search = BilevelSearch(variant, train, madds_cost(variant, len(train.class_names)))
    returned = name in ("plain", "memory returned")
    with nullcontext() if returned else freed_memory_kept(search.world.device):
        for _, seconds in zip(sys.stdin, _seconds(search, kind), strict=False):
            print(seconds, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    print(peak)


def _seconds(search: BilevelSearch, kind: Kind) -> Iterator[float]:
    batches = search.batches(("weight", "arch").index(kind), 0)
    for step, batch in enumerate(batches):
        start = time.perf_counter()
        if kind == "weight":
            search.weight_step(step, batch)
        else:
            search.arch_step(batch, step)
        yield time.perf_counter() - start


def taking_turns(commands: list[list[str]], steps: int) -> list[Run]:
    """Let processes of :func:`serve_steps` take ``steps`` steps each, one after the other."""
    runs = [Run() for _ in commands]
    with ExitStack() as stack:
        processes = []
        for command, run in zip(commands, runs, strict=True):
            processes.append(_started(command))
            stack.callback(processes[-1].kill)  # a stopped one would outlive an error of the other
            run.seconds.append(_step_of(processes[-1]))
        for _ in range(steps - 1):
            for process, run in zip(processes, runs, strict=True):
                run.seconds.append(_step_of(process))
        for process, run in zip(processes, runs, strict=True):
            process.send_signal(signal.SIGCONT)
            rest, _ = process.communicate()
            run.peak_memory_gb = float(rest)
    return runs


def _started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _step_of(process: subprocess.Popen[str]) -> float:
    """Let a process take one step and return its seconds; it is stopped before and after."""
    # Not only idle: its threads would spin on the cores that the other process computes on.
    assert process.stdin
    assert process.stdout
    process.send_signal(signal.SIGCONT)
    process.stdin.write("\n")
    process.stdin.flush()
    seconds = float(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    return seconds


def summarise(runs: list[Run], others: list[Run]) -> dict[str, Any]:
    """Summarise the steps of a variant, and their ratios to those that the other took in turn."""
    seconds = [value for run in runs for value in run.timed]
    other_seconds = [value for run in others for value in run.timed]
    ratios = [other / own for own, other in zip(seconds, other_seconds, strict=True)]
    return {
        "steps": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "min_s": round(min(seconds), 3),
        "first_s": round(min(run.seconds[0] for run in runs), 2),
        "peak_memory_gb": round(max(run.peak_memory_gb for run in runs), 2),
        "against_median_s": round(statistics.median(other_seconds), 3),
        "times_faster": round(statistics.median(ratios), 2),
        "times_faster_quartiles": [round(q, 2) for q in statistics.quantiles(ratios)[::2]],
        "times_faster_min": round(min(other_seconds) / min(seconds), 2),
    }


@dataclass(frozen=True)
class StepOptions:
    """What a step is."""

    recipe: Annotated[str, typer.Argument(help="Recipe; its space and detector are used.")]
    batch: Annotated[int, typer.Option(help="Images per step.")] = 2
    grid: Annotated[int, typer.Option(help="Width grid; 1 is the full Table I.")] = 1

    def load(self) -> Recipe:
        """Return the recipe, for multiply-adds."""
        recipe = Recipe.load(self.recipe).with_grid(self.grid).with_search(cost="madds")
        weights = replace(recipe.search.weights, batch_size=self.batch)
        return recipe.with_search(weights=weights)

    def command(self, kind: Kind, variant: str) -> list[str]:
        """Return the command of a process that takes such steps, see :func:`serve_steps`."""
        step = [self.recipe, f"--batch={self.batch}", f"--grid={self.grid}"]
        which = [f"--kind={kind}", f"--variant={variant}"]
        return [sys.executable, "-m", "bench.figures.search_steps", *step, *which, "--here"]


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared with what, and how often."""

    steps: Annotated[int, typer.Option(min=2, help="Timed steps of each variant and round.")] = 8
    rounds: Annotated[int, typer.Option(help="How often all variants take their turn.")] = 3
    variant: Annotated[list[str] | None, typer.Option(help="Variants; the usual if none.")] = None
    against: Annotated[str, typer.Option(help="Variant to compare with.")] = "plain"
    kind: Annotated[str, typer.Option(help="Only weight or only arch steps.")] = ""

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of steps."""
        every: tuple[Kind, ...] = ("weight", "arch")
        return [kind for kind in every if self.kind in ("", kind)]

    def check(self) -> None:
        """Refuse a variant that does not exist."""
        for name in (*(self.variant or ()), self.against):
            if name not in VARIANTS:
                raise typer.BadParameter(f"no variant {name!r}; there are {', '.join(VARIANTS)}")


def compare(options: StepOptions, comparison: ComparisonOptions) -> dict[str, Any]:
    """Run all variants in turns, and summarise them by kind of step and name."""
    runs: defaultdict[tuple[Kind, str], list[list[Run]]] = defaultdict(list)
    for _ in range(comparison.rounds):
        for kind in comparison.kinds:
            for name in comparison.variant or USUAL[kind]:
                pair = [options.command(kind, v) for v in (name, comparison.against)]
                runs[kind, name].append(taking_turns(pair, comparison.steps + WARM_UP))
                print(kind, name, *runs[kind, name][-1], file=sys.stderr, flush=True)
    results: dict[str, Any] = {}
    for (kind, name), pairs in runs.items():
        own, other = map(list, zip(*pairs, strict=True))
        results.setdefault(kind, {})[name] = summarise(own, other)
    return results


@grouped
def main(
    options: StepOptions,
    comparison: ComparisonOptions,
    here: Annotated[bool, typer.Option(help="One variant, in this process.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print seconds and peak memory of weight and architecture steps as JSON."""
    comparison.check()
    if here:
        assert comparison.variant
        serve_steps(options.load(), comparison.kinds[0], comparison.variant[0])
        return
    content = {
        **compare(options, comparison),
        "against": comparison.against,
        "recipe": options.recipe,
        "batch": options.batch,
        "width_grid": options.grid,
        "rounds": comparison.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **device_description(),
    }
    print(json.dumps(content, indent=2))
    if out:
        write_json(out, content)


if __name__ == "__main__":
    typer.run(main)
