"""Which command compares ways to a network? (`adapt study`)"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import DryRunOpt, JsonOpt, grouped, show, warn, warn_if_busy
from search.commands import RecipeOptions

if TYPE_CHECKING:
    from bench.study.spec import Study


@dataclass(frozen=True)
class StudyOptions:
    """What is compared; a study's file or name says the rest."""

    study: Annotated[
        str | None, typer.Option("--study", help="Named study, or a study's TOML file.")
    ] = None
    arms: Annotated[
        str | None,
        typer.Option("--arms", help="Arms, such as softmax,random,width; instead of a study's."),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Latency to meet: 12ms, or 75% of the source's."),
    ] = None
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Seeds; 6 by default.")] = None
    first_seed: Annotated[
        int | None,
        typer.Option(
            "--first-seed", min=0, help="First seed; others confirm a study. 0 by default."
        ),
    ] = None
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs of every training.")
    ] = None

    def load(self) -> "Study":
        """Return the study."""
        from bench.study.spec import DEFAULT_ARMS, Study, arms_named

        arms = arms_named(self.arms.split(",")) if self.arms else None
        if self.study:
            study = Study.load(self.study).with_changes(arms=arms)
        else:
            study = Study(arms or arms_named(DEFAULT_ARMS), budget=self.budget or "75%")
        changes = {"budget": self.budget, "seeds": self.seeds, "first_seed": self.first_seed}
        return study.with_changes(**changes).with_epochs(self.epochs)


@grouped
def study_command(
    recipe: RecipeOptions,
    options: StudyOptions,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all results.")] = None,
    costs: Annotated[
        Path | None, typer.Option("--costs", help="Cost table; measured if an arm needs one.")
    ] = None,
    at_once: Annotated[
        int, typer.Option("--jobs", min=1, help="Trainings side by side, one thread each.")
    ] = 1,
    shard: Annotated[
        str | None, typer.Option("--shard", help="Do the seeds of part i/N only.")
    ] = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Compare ways to a network at equal measured latency, with paired seeds and a verdict.

    A stopped study continues; after shards, run it once without --shard on all their results.

    Example: `adapt study recipes/bccd-cpu.toml --study mapping --jobs 2`
    """
    from adapt.progress import console_stage
    from bench.costs.selection import WHOLE, Shard
    from bench.study.execution import Execution
    from bench.study.plan import plan_study
    from bench.study.report import print_study, write_study
    from bench.study.run import StudyRun
    from search.train.world import alone_or_refused

    alone_or_refused("adapt study")
    study, base = options.load(), recipe.load()
    folder = out or Path("runs") / f"study-{options.study or base.name}"
    if dry_run:
        warn_if_busy()
        plan = plan_study(study, base, folder, costs, at_once)
        show(plan, as_json=as_json, title="plan")
        return
    part = Shard.parse(shard) if shard else WHOLE
    how = Execution(at_once, part, costs, console_stage, warn)
    result = StudyRun(study, base, folder, how).execute()
    files = write_study(folder, result)
    if as_json:
        show(result.to_dict(), as_json=True)
    else:
        print_study(result)
        print(f"report: {files[2]}", file=sys.stderr)
