"""Which commands run all stages, or check the machine? (`adapt run`, `demo`, `doctor`)"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import DryRunOpt, JsonOpt, grouped, show, warn
from search.commands import LimitOpt, RecipeOptions, StartOptions, show_estimate

if TYPE_CHECKING:
    from bench.pipeline import RunResult
    from search.recipe.recipe import Recipe


@grouped
def run_command(
    recipe: RecipeOptions,
    start: StartOptions,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all results.")] = None,
    limit_steps: LimitOpt = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline of a recipe: profile, search, derive, finetune, export, bench.

    Finished stages are reused and a stopped one continues.

    Example: `adapt run recipes/bccd-cpu.toml`
    """
    started = start.apply(recipe.load())
    if dry_run:
        show_estimate(started, limit_steps, as_json=as_json)
        return
    result = _run(started, out or Path("runs") / started.name, limit_steps)
    _show_run(result, as_json=as_json)


@grouped
def demo_command(
    start: StartOptions,
    out: Annotated[Path, typer.Option("--out", help="Folder of all results.")] = Path("runs/demo"),
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline on a generated data set, in minutes on a CPU.

    Example: `adapt demo`
    """
    from adapt.data.synthetic import generate
    from adapt.progress import console_stage

    with console_stage("generate data") as progress:
        generate(out / "data", progress=progress)
    demo = start.apply(RecipeOptions("demo", out / "data").load())
    _show_run(_run(demo, out, None), as_json=as_json)


def doctor_command(as_json: JsonOpt = False) -> None:
    """Tell what works on this machine, and how to get what does not.

    Example: `adapt doctor`
    """
    from bench.doctor.runtimes import diagnose, to_json

    findings = diagnose()
    show(to_json(findings) if as_json else findings, as_json=as_json, title="adapt doctor")


def _run(recipe: "Recipe", out: Path, limit_steps: int | None) -> "RunResult":
    from adapt.progress import console_stage
    from bench.pipeline import Run
    from search.train.session import Session
    from search.train.world import alone_or_refused

    alone_or_refused("adapt run")
    session = Session(warn=warn, limit_steps=limit_steps)
    return Run(recipe, out, session, console_stage).execute()


def _show_run(result: "RunResult", *, as_json: bool) -> None:
    from rich.console import Console

    from bench.networks.report import rich_table

    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    reused = [name for name, state in result.stages.items() if state == "reused"]
    if reused:
        print(f"reused: {', '.join(reused)}", file=sys.stderr)
    Console().print(rich_table(result.bench))
    for line in result.summary():
        print(line)
