"""Which commands measure a cost table, and show it? (`adapt profile`, `adapt costs`)"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapt.command_line import DryRunOpt, JsonOpt, grouped, show, warn_if_busy
from adapt.machine import MEASURED
from adapt.runtime import Precision, Runtime
from search.commands import RecipeOptions

if TYPE_CHECKING:
    from adapt.progress import Progress
    from bench.costs.selection import Part
    from search.recipe.recipe import Recipe

TableArg = Annotated[Path, typer.Argument(help="Cost table that `adapt profile` wrote.")]
BuildJobsOpt = Annotated[
    int, typer.Option("--build-jobs", min=1, help="TensorRT-RTX engines built at once.")
]
costs_app = typer.Typer(no_args_is_help=True, help="Look at and join cost tables.")


@dataclass(frozen=True)
class DeviceOptions:
    """The runtime, in which precision and with how many images and threads, that is measured."""

    runtime: Annotated[
        Runtime | None, typer.Option("--runtime", help="Runtime, not the recipe's.")
    ] = None
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Precision, not the recipe's.")
    ] = None
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images per call, not the recipe's.")
    ] = None
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None

    def apply(self, recipe: "Recipe") -> "Recipe":
        """Return the recipe with these options."""
        return recipe.with_device(**asdict(self))


@dataclass(frozen=True)
class PartOptions:
    """Which of the operations are measured here."""

    grid: Annotated[
        int,
        typer.Option(
            "--grid",
            min=1,
            help="1 measures every operation; 2 or more measure about an eighth of them, output "
            "widths at multiples of this, and infer the others.",
        ),
    ] = 1
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="Part i/N of the operations; a SLURM job array's by default."),
    ] = None

    def part(self) -> "Part":
        """Return what to measure here."""
        from bench.costs.selection import Part, Shard

        shard = Shard.parse(self.shard) if self.shard else Shard.from_environment()
        return Part(shard, self.grid)


@grouped
def profile_command(
    recipe: RecipeOptions,
    device: DeviceOptions,
    part: PartOptions,
    out: Annotated[Path, typer.Option("--out", help="SQLite file of the cost table.")] = Path(
        "runs/costs.sqlite"
    ),
    build_jobs: BuildJobsOpt = 1,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Measure what every candidate operation costs on this machine.

    The table is a file; a stopped run continues where it was.

    Example: `adapt profile recipes/bccd-cpu.toml --out runs/costs.sqlite`
    """
    from adapt.progress import console_stage
    from bench.costs.recipe_table import RecipeTable

    profiled = device.apply(recipe.load())
    table = RecipeTable(profiled, profiled.num_classes(), out, build_jobs)
    if dry_run:
        show(table.plan(part.part()), as_json=as_json, title="plan")
        return
    with console_stage("profile") as progress:
        summary = table.profile(part.part(), progress=_warning(progress))
    show(summary, as_json=as_json, title="profile")


def _warning(progress: "Progress") -> "Progress":
    """Return a progress that warns of a busy machine once something is measured."""
    told = False

    def step(done: int, total: int, note: str = "", /) -> None:
        nonlocal told
        if not told:
            told = True
            warn_if_busy(MEASURED)
        progress(done, total, note)

    return step


@costs_app.command("show")
def costs_show_command(
    table: TableArg,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG: latency over channels, block, kernel.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Show the conditions and the ranges of a cost table, and draw it.

    Example: `adapt costs show runs/costs.sqlite --plot runs/costs.png`
    """
    from adapt.cost.table import CostTable
    from bench.costs.report import summarise, write_heat_map

    with CostTable.open(table) as opened:
        if plot:
            write_heat_map(opened, plot)
        show(summarise(opened), as_json=as_json, title=str(table))


@costs_app.command("export")
def costs_export_command(
    table: TableArg,
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
) -> None:
    """Write the rows of a cost table as CSV.

    Example: `adapt costs export runs/costs.sqlite --out runs/costs.csv`
    """
    from adapt.cost.table import CostTable
    from bench.costs.report import write_csv

    with CostTable.open(table) as opened:
        write_csv(opened, out)


@costs_app.command("certify")
@grouped
def costs_certify_command(
    recipe: RecipeOptions,
    table: TableArg,
    detectors: Annotated[
        int, typer.Option("--detectors", min=4, help="Whole detectors to measure.")
    ] = 30,
    build_jobs: BuildJobsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Measure whole detectors and store how well the table predicts them.

    Example: `adapt costs certify recipes/bccd-cpu.toml runs/costs.sqlite`
    """
    from adapt.cost.table import CostTable
    from adapt.progress import console_stage
    from bench.costs.recipe_table import RecipeTable

    with CostTable.open(table) as opened:
        device = opened.conditions.device_options()
    on_device = recipe.load().with_device(**device)
    measured = RecipeTable(on_device, on_device.num_classes(), table, build_jobs)
    with console_stage("certify") as progress:
        certificate = measured.certify(detectors, progress=progress)
    show(certificate, as_json=as_json, title="certificate")


@costs_app.command("merge")
def costs_merge_command(
    tables: Annotated[list[Path], typer.Argument(help="Tables of one device and protocol.")],
    out: Annotated[Path, typer.Option("--out", help="Cost table to write.")],
    as_json: JsonOpt = False,
) -> None:
    """Join the tables that several equal machines measured with `adapt profile --shard`.

    Example: `adapt costs merge a.sqlite b.sqlite --out costs.sqlite`
    """
    from adapt.cost.merge import merge_tables

    show({"table": str(out), **asdict(merge_tables(tables, out))}, as_json=as_json)
