"""Which commands run all stages? (`adapt run`, `demo`)"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import DryRunOpt, JsonOpt, grouped, show, warn, warn_if_busy
from adapt.machine import MEASURED
from search.commands import CostsOptions, LimitOpt, RecipeOptions, StartOptions

if TYPE_CHECKING:
    from bench.pipeline.choice import Front
    from bench.pipeline.result import RunResult
    from bench.pipeline.run import Costs
    from search.recipe.recipe import Recipe

GridOpt = Annotated[
    int, typer.Option("--grid", min=1, help="As of `adapt profile --grid`: 2 measures an eighth.")
]
TrialOpt = Annotated[
    bool,
    typer.Option(
        "--trial",
        help="Does all of it work here? The whole way in minutes, with 20 steps per training.",
    ),
]
DEMO_TEST = 60  # images of the demo that no network is chosen on
DEMO_BUDGETS = "90%,80%,70%"  # the cheapest network of its space takes about 55 % of the source
DEMO_GRID, DEMO_DETECTORS = 2, 12  # of its cost table: enough for three budgets that are verified


@dataclass(frozen=True)
class FrontOptions:
    """Which networks are compared with the source, and how they are trained."""

    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            help="Latencies to derive a network for each: 75%,60%,9.5ms (% of the source's).",
        ),
    ] = None
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Scale the source in width to each of them, too.")
    ] = False
    at_once: Annotated[
        int, typer.Option("--jobs", min=1, help="Fine-tunings side by side, one thread each.")
    ] = 1

    def load(self) -> "Front":
        """Return the networks."""
        from bench.pipeline.choice import Front

        budgets = [text.strip() for text in self.budgets.split(",")] if self.budgets else []
        return Front(tuple(budgets), self.scaled)


@grouped
def run_command(
    recipe: RecipeOptions,
    start: StartOptions,
    costs: CostsOptions,
    front: FrontOptions,
    grid: GridOpt = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all results.")] = None,
    limit_steps: LimitOpt = None,
    trial: TrialOpt = False,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline of a recipe: profile, search, derive, finetune, export, bench.

    Runtime, precision and batch are those of the recipe's device. Finished stages are reused and a
    stopped one continues.

    With --trial it is tried out first, into a folder of its own.

    Example: `adapt run recipes/bccd-cpu.toml`
    """
    from bench.pipeline.run import Costs
    from search.recipe.trial import TRIAL_DETECTORS, TRIAL_GRID, TRIAL_STEPS, trial_of

    started, table = start.apply(recipe.load()), Costs(costs.costs, costs.uncertified, grid)
    if trial:
        started, limit_steps = trial_of(started), limit_steps or TRIAL_STEPS
        table = replace(table, grid=max(grid, TRIAL_GRID), detectors=TRIAL_DETECTORS)
    folder = out or Path("runs") / started.name
    if dry_run:
        _show_plan(started, folder, table, limit_steps, front, as_json=as_json)
        return
    _show_run(_run(started, folder, limit_steps, table, front), as_json=as_json)
    if trial:
        warn(
            f"this was a trial: trainings ended after {limit_steps} steps, and its networks are "
            "good for nothing; all of it works here, and the same command without --trial takes "
            "another folder"
        )


@grouped
def demo_command(
    start: StartOptions,
    out: Annotated[Path, typer.Option("--out", help="Folder of all results.")] = Path("runs/demo"),
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline on a generated data set, in minutes on a CPU.

    It derives a network for each of three latencies, and compares them with the source, and with
    the source scaled in width to the same latencies.

    Example: `adapt demo`
    """
    from adapt.data.synthetic import generate
    from adapt.machine import usable_cores
    from adapt.progress import console_stage
    from bench.pipeline.run import Costs

    demo = start.apply(RecipeOptions("demo", out / "data").load())
    size = demo.input.fixed()
    with console_stage("generate data") as progress:
        generate(out / "data", test=DEMO_TEST, size=(size.height, size.width), progress=progress)
    front = FrontOptions(DEMO_BUDGETS, scaled=True, at_once=usable_cores())
    costs = Costs(grid=DEMO_GRID, detectors=DEMO_DETECTORS)
    _show_run(_run(demo, out, None, costs, front), as_json=as_json)


def _show_plan(
    recipe: "Recipe",
    out: Path,
    costs: "Costs",
    limit_steps: int | None,
    front: FrontOptions,
    *,
    as_json: bool,
) -> None:
    from bench.pipeline.plan import plan_run

    warn_if_busy()
    plan = plan_run(recipe, out, costs, limit_steps, front.load(), front.at_once)
    show(plan.to_dict() if as_json else plan.readable(), as_json=as_json, title="plan")


def _run(
    recipe: "Recipe", out: Path, limit_steps: int | None, costs: "Costs", front: FrontOptions
) -> "RunResult":
    from adapt.progress import console_stage
    from bench.pipeline.run import Run
    from search.train.session import Session
    from search.train.world import alone_or_refused

    alone_or_refused("adapt run")
    session = Session(warn=warn, limit_steps=limit_steps)
    run = Run(recipe, out, session, console_stage, costs, front.load(), front.at_once)
    if recipe.search.cost == "latency":
        warn_if_busy(MEASURED)
    return run.execute()


def _show_run(result: "RunResult", *, as_json: bool) -> None:
    from bench.networks.report import print_result

    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    reused = [name for name, state in result.stages.items() if state == "reused"]
    if reused:
        print(f"reused: {', '.join(reused)}", file=sys.stderr)
    if result.bench:
        print_result(result.bench)
    for line in result.summary():
        print(line)
