"""Which command writes a recipe for a data set? (`adapt init`)"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from adapt.command_line import JsonOpt, show, warn, warn_if_busy
from adapt.runtime import Runtime

if TYPE_CHECKING:
    from search.recipe.recipe import Recipe


def init_command(
    data: Annotated[Path, typer.Argument(help="Data set: a folder in COCO, VOC or YOLO format.")],
    target: Annotated[
        str, typer.Option("--target", help="Latency to meet, such as 12ms; the source's if empty.")
    ] = "",
    runtime: Annotated[
        str, typer.Option("--runtime", help=f"Where it will run: {', '.join(get_args(Runtime))}.")
    ] = "ort-cpu",
    out: Annotated[Path, typer.Option("--out", help="Recipe to write.")] = Path("recipe.toml"),
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Estimate how long the run will take.")
    ] = True,
    as_json: JsonOpt = False,
) -> None:
    """Look at images and boxes, and write a recipe that fits them, with the reason of every choice.

    A data set without `val` is divided: a fifth of its images is held out.

    Example: `adapt init datasets/mine --target 12ms --out mine.toml`
    """
    from adapt.errors import AdaptError
    from adapt.progress import console_stage
    from adapt.runtime import known_runtime
    from search.advice.run import advised_recipe

    if out.exists():
        raise AdaptError(f"{out} exists and is left alone; pass another --out, or delete it")
    with console_stage("look at images") as progress:
        advised = advised_recipe(data, out, known_runtime(runtime, "--runtime"), target, progress)
    advised.save()  # before the estimate, which opens what the recipe names
    minutes = None
    if timed:
        crowded = warn_if_busy()
        minutes = _minutes(advised.recipe)
        if not crowded:  # what is wrong today would be read in the file for ever
            advised.save(minutes)
    for doubt in advised.doubts:
        warn(doubt)
    found: dict[str, Any] = {"recipe": str(out), **advised.found}
    if minutes:
        found |= {"minutes": minutes} if as_json else {"run_takes": _told(minutes)}
    settings = {name: one.value for name, one in advised.settings.items()}
    shown: Any = settings if as_json else [f"{name} = {v}" for name, v in settings.items()]
    show({**found, "settings": shown, "next": _next(out, target)}, as_json=as_json)


def _next(out: Path, target: str) -> str:
    """Return the command that runs a recipe, for less than the source's latency."""
    return f"adapt run {out}" if target else f"adapt run {out} --budgets 75%"


def _told(minutes: float) -> str:
    from bench.pipeline.plan import duration

    return f"about {duration(60 * minutes)} on this machine"


def _minutes(recipe: "Recipe") -> float | None:
    """Return how long a run takes on this machine; None if it cannot run here."""
    from bench.pipeline.plan import plan_run
    from bench.pipeline.run import Costs

    plan = plan_run(recipe, Path("runs") / recipe.name, Costs(), None)
    known = not any(isinstance(seconds, str) for seconds in plan.seconds.values())
    return round(plan.total / 60, 1) if known else None
