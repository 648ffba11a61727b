"""Which commands does `adapt` have? Each resolves its inputs, calls one function, shows the result.

Heavy libraries are imported inside the commands, so that `adapt --help` answers at once.
"""

import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from adapt.errors import AdaptError
from adapt.runtime import Precision, Runtime, Tail

if TYPE_CHECKING:
    from adapt.progress import Stage
    from bench.pipeline import RunResult
    from search.recipe.recipe import Recipe
    from search.train.world import World


class Commands(TyperGroup):
    """Turns known errors into one sentence on stderr and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; unknown errors keep their traceback."""
        try:
            return super().invoke(ctx)
        except AdaptError as error:
            message = str(error)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
                raise
            message = f"cannot write {error.filename}: {error.strerror}; choose another --out"
        except KeyboardInterrupt:
            print(
                "stopped; profile, search, finetune and run continue from their last checkpoint",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
        print(f"error: {message}", file=sys.stderr)
        raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="The best object detector for a latency budget on your own hardware.",
    epilog="First run: `adapt demo`. Whole pipeline on your data: `adapt run RECIPE.toml`.",
)
data_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Look at a data set.")
app.add_typer(data_app, name="data")
costs_app = typer.Typer(cls=Commands, no_args_is_help=True, help="Look at and join cost tables.")
app.add_typer(costs_app, name="costs")

RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Preset (`paper`, `demo`) or path of a .toml file.")
]
DataOpt = Annotated[
    Path | None, typer.Option("--data", help="Folder of a COCO-format data set, not the recipe's.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be done and how long it takes.")
]
CostsOpt = Annotated[
    Path | None, typer.Option("--costs", help="Cost table that `adapt profile` wrote.")
]
LimitOpt = Annotated[
    int | None,
    typer.Option("--limit-steps", min=1, help="Stop every training phase after so many steps."),
]
Init = Literal["imagenet", "scratch"]
InitOpt = Annotated[
    Init | None,
    typer.Option("--init", help="Where parameters start, not the recipe's choice."),
]
WeightsOpt = Annotated[
    Path | None, typer.Option("--weights", help="Weight file of the source backbone.")
]
BuildJobsOpt = Annotated[
    int, typer.Option("--build-jobs", min=1, help="TensorRT engines that are built at once.")
]
UncertifiedOpt = Annotated[
    bool, typer.Option("--uncertified", help="Use a cost table that `adapt costs certify` lacks.")
]
AmpOpt = Annotated[
    Literal["off", "bf16", "fp16"] | None,
    typer.Option("--amp", help="Type that the networks compute in while they train."),
]
AccumulateOpt = Annotated[
    int | None,
    typer.Option("--accumulate", min=1, help="Parts of a batch, one after the other."),
]
CompileOpt = Annotated[bool, typer.Option("--compile", help="Use torch.compile.")]
ThreadsOpt = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of one inference.")]


def _load_recipe(
    name: str,
    data: Path | None = None,
    init: Init | None = None,
    weights: Path | None = None,
) -> "Recipe":
    from search.recipe.recipe import Recipe

    return Recipe.load(name).with_data(data).with_init(init, weights)


def _show(content: dict[str, Any], *, as_json: bool, title: str = "") -> None:
    """Print a result: JSON for programs, a table for people."""
    if as_json:
        print(json.dumps(content, indent=2, default=str))
        return
    table = Table(title=title or None, show_header=False, title_justify="left")
    for name, value in content.items():
        table.add_row(name.replace("_", " "), _plain(value))
    Console().print(table, markup=False)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return "\n".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@app.command("doctor")
def doctor_command(as_json: JsonOpt = False) -> None:
    """Tell what works on this machine, and how to get what does not.

    Example: `adapt doctor`
    """
    from bench.doctor import diagnose, to_json

    found = diagnose()
    _show(to_json(found) if as_json else found, as_json=as_json, title="adapt doctor")


@app.command("weights")
def weights_command(
    source: Annotated[str, typer.Argument(help="Source backbone.")] = "mobilenet_v2",
) -> None:
    """Find or download the ImageNet weights of a source backbone and print their path.

    Example: `adapt weights mobilenet_v2`
    """
    from adapt.network.weights import find_weights

    print(find_weights(source))


@data_app.command("check")
def data_check_command(
    root: Annotated[Path, typer.Argument(help="Folder of a COCO-format data set.")],
    split: Annotated[list[str] | None, typer.Option("--split", help="Split; repeatable.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Open every image and box of a data set and report what would go wrong.

    Example: `adapt data check datasets/bccd --split train --split val`
    """
    from adapt.data.check import check_split
    from adapt.data.coco import load_split
    from adapt.progress import console_stage

    reports = {}
    for name in split or ["train", "val"]:
        loaded = load_split(root, name)
        with console_stage(f"check {name}") as progress:
            reports[name] = check_split(loaded, progress)
    if as_json:
        print(json.dumps({name: r.to_dict() for name, r in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            _show(report.to_dict(), as_json=False, title=name)
    if any(report.problems for report in reports.values()):
        raise typer.Exit(1)


@app.command("profile")
def profile_command(
    recipe: RecipeArg,
    out: Annotated[Path, typer.Option("--out", help="SQLite file of the cost table.")] = Path(
        "runs/costs.sqlite"
    ),
    data: DataOpt = None,
    grid: Annotated[
        int,
        typer.Option(
            "--grid",
            min=1,
            help="1 measures every operation; 2 or more measure about an eighth of them, output "
            "widths at multiples of this, and infer the others.",
        ),
    ] = 1,
    runtime: Annotated[
        Runtime | None, typer.Option("--runtime", help="Runtime, not the recipe's.")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="Precision, not the recipe's.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Images per call, not the recipe's.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    build_jobs: BuildJobsOpt = 1,
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="Part i/N of the operations; a SLURM job array's by default."),
    ] = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Measure what every candidate operation costs on this machine.

    The table is a file; a stopped run continues where it was.

    Example: `adapt profile recipes/bccd-cpu.toml --out runs/costs.sqlite`
    """
    from adapt.progress import console_stage
    from bench.costs.of_recipe import plan_summary, profile_recipe
    from bench.costs.selection import Shard

    loaded = _load_recipe(recipe, data)
    classes = len(loaded.split(loaded.data.train).class_names)
    wanted = loaded.with_device(runtime, precision, batch, threads)
    part = Shard.parse(shard) if shard else Shard.from_environment()
    how = part, grid, build_jobs
    if dry_run:
        _show(plan_summary(wanted, classes, out, *how), as_json=as_json, title="plan")
        return
    with console_stage("profile") as progress:
        summary = profile_recipe(wanted, classes, out, *how, progress=progress)
    _show(summary, as_json=as_json, title="profile")


TableArg = Annotated[Path, typer.Argument(help="Cost table that `adapt profile` wrote.")]


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
        _show(summarise(opened), as_json=as_json, title=str(table))


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
def costs_certify_command(
    recipe: RecipeArg,
    table: TableArg,
    data: DataOpt = None,
    detectors: Annotated[
        int, typer.Option("--detectors", min=4, help="Random detectors to measure.")
    ] = 30,
    build_jobs: BuildJobsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Measure random whole detectors and store how well the table predicts them.

    Example: `adapt costs certify recipes/bccd-cpu.toml runs/costs.sqlite`
    """
    from adapt.cost.table import CostTable
    from adapt.progress import console_stage
    from bench.costs.of_recipe import certify_recipe

    with CostTable.open(table) as opened:
        device = opened.conditions.device_options()
    loaded = _load_recipe(recipe, data).with_device(**device)
    classes = len(loaded.split(loaded.data.train).class_names)
    with console_stage("certify") as progress:
        found = certify_recipe(loaded, classes, table, detectors, build_jobs, progress=progress)
    _show(found, as_json=as_json, title="certificate")


@costs_app.command("merge")
def costs_merge_command(
    tables: Annotated[list[Path], typer.Argument(help="Tables of one device and protocol.")],
    out: Annotated[Path, typer.Option("--out", help="Cost table to write.")],
    as_json: JsonOpt = False,
) -> None:
    """Join the tables that several equal machines measured with `adapt profile --shard`.

    Example: `adapt costs merge a.sqlite b.sqlite --out costs.sqlite`
    """
    from dataclasses import asdict

    from adapt.cost.merge import merge_tables

    _show({"table": str(out), **asdict(merge_tables(tables, out))}, as_json=as_json)


@app.command("search")
def search_command(
    recipe: RecipeArg,
    cost: Annotated[
        Literal["madds", "latency"] | None,
        typer.Option("--cost", help="What to pay for, not the recipe's choice."),
    ] = None,
    costs: CostsOpt = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="Cost to end at, such as 4.0ms or 134.9G; learns lambda."),
    ] = None,
    cost_weight: Annotated[
        float | None,
        typer.Option("--cost-weight", min=0, help="Fixed lambda, or its start with a target."),
    ] = None,
    paths: Annotated[
        str | None,
        typer.Option(
            "--paths",
            help="Candidates per position that a step runs: all or a number; WEIGHT:ARCH for "
            "different ones in weight and architecture steps.",
        ),
    ] = None,
    bi_sampling: Annotated[
        bool, typer.Option("--bi-sampling", help="Train a second path of other candidates too.")
    ] = False,
    recompute: Annotated[
        Literal["off", "norms", "operation", "block"] | None,
        typer.Option("--recompute", help="Compute again in the backward pass, to save memory."),
    ] = None,
    amp: AmpOpt = None,
    accumulate: AccumulateOpt = None,
    compiled: CompileOpt = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results.")] = None,
    data: DataOpt = None,
    init: InitOpt = None,
    weights: WeightsOpt = None,
    limit_steps: LimitOpt = None,
    uncertified: UncertifiedOpt = False,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Search operations, depth and widths inside the detector.

    A stopped search continues with the same command. Several processes, each with its GPU:
    `torchrun --nproc-per-node 4 -m cli search RECIPE`.

    Example: `adapt search recipes/bccd-cpu.toml --cost latency --costs runs/costs.sqlite`
    """
    from search.estimate import estimate_run
    from search.recipe.costs import search_cost
    from search.recipe.optimisation import parse_paths
    from search.supernet.bilevel import run_search
    from search.supernet.plot import plot_search
    from search.train.world import joined_world

    loaded = _load_recipe(recipe, data, init, weights).with_compute(
        amp=amp, recompute=recompute, compile=compiled or None
    )
    loaded = loaded.with_accumulate(search=accumulate).with_search(
        cost=cost,
        target=target,
        cost_weight=cost_weight,
        bi_sampling=bi_sampling or None,
        **parse_paths(paths),
    )
    train = loaded.split(loaded.data.train)
    if dry_run:
        estimate = estimate_run(loaded, len(train), len(train.class_names), limit_steps)
        _show(estimate.to_dict(), as_json=as_json, title="estimate")
        return
    folder = out or Path("runs") / loaded.name / "search"
    found = search_cost(loaded, train, costs, uncertified=uncertified)
    with joined_world() as world:
        if loaded.search.cost == "latency" and world.is_main:
            _say_how_certain(costs)
        with _stage(world)("search") as progress:
            path = run_search(
                loaded,
                train,
                found.model,
                folder,
                progress=progress,
                warn=_warn,
                limit_steps=limit_steps,
                provenance=found.provenance,
                world=world,
            )
        if world.is_main:
            plot = folder / "search.png"
            plot_search(folder / "search.jsonl", plot)
            following = f"adapt derive {path}"
            _show({"supernet": str(path), "plot": plot, "next": following}, as_json=as_json)


def _stage(world: "World") -> "Stage":
    """Return the progress display of the first process, and none for the others."""
    from adapt.progress import console_stage, silent_stage

    return console_stage if world.is_main else silent_stage


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


@app.command("derive")
def derive_command(
    supernet: Annotated[Path, typer.Argument(help="`supernet.pt` of a finished search.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Architecture file; a folder for --pareto.")
    ] = None,
    costs: CostsOpt = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Most it may cost, such as 4.0ms or 134.9G multiply-adds."),
    ] = None,
    pareto: Annotated[
        int | None,
        typer.Option("--pareto", min=2, help="Derive the best networks of so many budgets."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Measure, and correct the table until --budget is met."),
    ] = False,
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine", min=1, help="Re-rank so many networks of the front on held-out images."
        ),
    ] = None,
    evolve: Annotated[
        int, typer.Option("--evolve", min=0, help="Breed so many generations from these.")
    ] = 0,
    data: DataOpt = None,
    uncertified: UncertifiedOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Derive architectures from a search: the arg max, or the most probable within a budget.

    Example: `adapt derive runs/bccd/search/supernet.pt --budget 9.5ms --costs runs/costs.sqlite`
    """
    from search.derive.derive import derive, derive_front
    from search.recipe.budget import Budget

    how: dict[str, Any] = {"costs": costs, "uncertified": uncertified}
    if verify and (pareto or refine or evolve):
        option = "--pareto" if pareto else "--refine" if refine else "--evolve"
        raise AdaptError(f"--verify measures the network of one budget; leave out {option}")
    if data and not refine:
        raise AdaptError(
            f"{data} is only looked at to re-rank a front; pass --refine, or no --data"
        )
    if refine or evolve:
        how["budget"] = Budget.parse(budget) if budget else None
        _refined(supernet, out, (pareto, refine, evolve), data, how, as_json=as_json)
        return
    if pareto:
        if budget:
            raise AdaptError("--pareto derives for many budgets; leave out --budget or --pareto")
        folder = out or supernet.parent / "front"
        rows = derive_front(supernet, folder, pareto, **how)
        lines = [f"{Path(r['architecture']).name}: {_plain(r)}" for r in rows]
        _show(
            {"networks": rows if as_json else lines, "plot": folder / "front.png"}, as_json=as_json
        )
        return
    path = out or supernet.parent / "arch.json"
    how["budget"] = Budget.parse(budget) if budget else None
    found = _verified(supernet, path, how) if verify else derive(supernet, path, **how)
    if not as_json and verify:
        found["rounds"] = list(map(_plain, found["rounds"]))
    _say_how_certain(costs)
    _show(found, as_json=as_json, title="derived")


def _refined(
    supernet: Path,
    out: Path | None,
    numbers: tuple[int | None, int | None, int],
    data: Path | None,
    how: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Re-rank a front, and show the best network and the others."""
    from adapt.progress import console_stage
    from bench.acceptance.refine import Refinement, refine_front

    asked = Refinement.of(*numbers, how.pop("budget"))
    folder = out or supernet.parent / "refined"
    found = refine_front(supernet, folder, asked, data=data, stage=console_stage, **how)
    if not as_json:
        found["networks"] = [
            f"{Path(r['architecture']).name}: {_plain(r)}" for r in found["networks"]
        ]
    _say_how_certain(how["costs"])
    if found["chosen_on"] == found["benchmark"]:
        _warn(
            f"networks were chosen on `{found['chosen_on']}`, which the benchmark reports too: its "
            "AP will be too good; set data.test to another split"
        )
    _show(found, as_json=as_json, title="refined")


def _verified(supernet: Path, out: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Derive with measurements, showing how far they are."""
    from adapt.progress import console_stage
    from bench.acceptance.verify import derive_verified

    with console_stage("verify") as progress:
        return derive_verified(supernet, out, progress=progress, **how)


def _say_how_certain(costs: Path | None) -> None:
    """Print on stderr how far a cost table can be trusted."""
    from adapt.cost.table import CostTable
    from search.recipe.costs import certificate_line

    if costs:
        with CostTable.open(costs) as table:
            print(certificate_line(table), file=sys.stderr)


@app.command("finetune")
def finetune_command(
    recipe: RecipeArg,
    arch: Annotated[
        str, typer.Option("--arch", help="Architecture file, or `mobilenet_v2` for the source.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Detector file to write.")] = None,
    data: DataOpt = None,
    init: InitOpt = None,
    weights: WeightsOpt = None,
    limit_steps: LimitOpt = None,
    amp: AmpOpt = None,
    accumulate: AccumulateOpt = None,
    compiled: CompileOpt = False,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Map the pretrained parameters to an architecture and train the detector.

    A stopped training continues with the same command. Several processes, each with its GPU:
    `torchrun --nproc-per-node 4 -m cli finetune RECIPE --arch ARCH`.

    Example: `adapt finetune recipes/bccd-cpu.toml --arch runs/bccd/arch.json`
    """
    from search.estimate import estimate_run
    from search.train.finetune import resolve_architecture, run_finetune
    from search.train.world import joined_world

    loaded = _load_recipe(recipe, data, init, weights).with_compute(
        amp=amp, compile=compiled or None
    )
    loaded = loaded.with_accumulate(finetune=accumulate)
    train = loaded.split(loaded.data.train)
    architecture = resolve_architecture(arch, loaded)
    if dry_run:
        estimate = estimate_run(loaded, len(train), len(train.class_names), limit_steps)
        _show(estimate.to_dict()["finetune"], as_json=as_json, title="estimate")
        return
    path = out or Path("runs") / loaded.name / f"{Path(arch).stem}.safetensors"
    with joined_world() as world:
        with _stage(world)("finetune") as progress:
            run_finetune(
                loaded,
                architecture,
                train,
                path,
                progress=progress,
                limit_steps=limit_steps,
                world=world,
            )
        if world.is_main:
            _show({"detector": str(path), "next": f"adapt export {path}"}, as_json=as_json)


@app.command("eval")
def eval_command(
    artifact: Annotated[Path, typer.Argument(help="Detector (.safetensors) or ONNX file.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of a COCO-format data set.")],
    split: Annotated[str, typer.Option("--split", help="Split to evaluate.")] = "val",
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Runtime; the file's usual one if empty.")
    ] = None,
    threads: ThreadsOpt = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First N images.")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", help="Write detections as COCO results JSON.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Evaluate the COCO mAP of an artifact on a runtime.

    Example: `adapt eval runs/bccd/derived.onnx --data datasets/bccd --split test`
    """
    from adapt.data.coco import load_split
    from adapt.progress import console_stage
    from bench.networks.measure import evaluate_artifact

    loaded = load_split(data, split).limit(limit)
    with console_stage("eval") as progress:
        metrics = evaluate_artifact(
            artifact, loaded, runtime, threads, results=results, progress=progress
        )
    _show(metrics.to_dict(), as_json=as_json, title=f"{artifact} on {split}")


@app.command("export")
def export_command(
    detector: Annotated[Path, typer.Argument(help="Detector file that `adapt finetune` wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="ONNX file to write.")] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine too.")] = False,
    tail: Annotated[
        Tail | None,
        typer.Option("--tail", help="NMS, or raw heads; tensor-nms for --trt, else onnx-nms."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="What follows the heads is always fp32.")
    ] = "fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per inference.")] = 1,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Take any number of images from 1 to --batch.")
    ] = False,
    pixels: Annotated[
        Literal["float32", "uint8"],
        typer.Option("--pixels", help="Type of the images: 0 to 1, or bytes."),
    ] = "float32",
    nms_candidates: Annotated[
        int | None,
        typer.Option("--nms-candidates", min=1, help="Boxes that reach NMS, not the recipe's."),
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option("--calibration", help="Images, folders, data sets that int8 is fitted to."),
    ] = None,
    verify: Annotated[
        list[Path] | None,
        typer.Option("--verify", help="Images, or folders, to compare with PyTorch's results."),
    ] = None,
    ap_gate: Annotated[
        float | None,
        typer.Option("--ap-gate", help="Fail if AP drops by more points of 100; needs --data."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Data set: --ap-gate evaluates on it, int8 calibrates on it."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of --ap-gate.")] = "val",
    flavour: Annotated[
        Literal["tensorrt", "tensorrt-rtx"] | None,
        typer.Option("--flavour", help="Kind of TensorRT; the first that is installed if empty."),
    ] = None,
    workspace: Annotated[
        int | None, typer.Option("--workspace", min=1, help="TensorRT's scratch memory in MiB.")
    ] = None,
    level: Annotated[
        int | None,
        typer.Option("--level", min=0, max=5, help="TensorRT's builder optimisation level."),
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option("--timing-cache", help="File of TensorRT's tactic timings.")
    ] = None,
    tuned_batch: Annotated[
        int | None, typer.Option("--tuned-batch", min=1, help="Batch a dynamic engine is best at.")
    ] = None,
    as_json: JsonOpt = False,
) -> None:
    """Export a detector to ONNX, decoding and NMS inside, and to a TensorRT engine.

    Example: `adapt export runs/bccd/derived.safetensors --trt --precision fp16`
    """
    from adapt.progress import console_stage
    from bench.acceptance.ap_gate import deploy_within
    from export.deploy import Deployment, deploy
    from export.engine.builder import BuildOptions

    asked = (flavour, workspace, level, timing_cache, tuned_batch)
    if not trt and any(value is not None for value in asked):
        raise AdaptError("options of TensorRT build an engine; pass --trt with them")
    engine = BuildOptions(
        flavour=flavour and flavour.replace("-", "_"),
        workspace_mb=workspace,
        level=level,
        timing_cache=timing_cache,
        tuned_batch=tuned_batch,
    )
    wanted = Deployment(
        tail=tail,
        precision=precision,
        batch=batch,
        dynamic=dynamic,
        pixels=pixels,
        nms_candidates=nms_candidates,
        calibration=calibration or ([data] if data else ()),
        verify=verify or (),
        engine=engine if trt else None,
    )
    path = out or detector.with_suffix(".onnx")
    with console_stage("export") as progress:
        if ap_gate is None:
            summary = deploy(detector, path, wanted, progress=progress)
        else:
            summary = deploy_within(
                detector, path, wanted, gate=ap_gate, data=data, split=split, progress=progress
            )
    _show(summary, as_json=as_json, title="export")


@app.command("predict")
def predict_command(
    artifact: Annotated[Path, typer.Argument(help="Detector (.safetensors), ONNX file or engine.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path(
        "runs/predictions"
    ),
    score: Annotated[
        float, typer.Option("--score", min=0, max=1, help="Lowest score that is drawn.")
    ] = 0.3,
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="Runtime; the file's usual one if empty.")
    ] = None,
    threads: ThreadsOpt = 1,
    as_json: JsonOpt = False,
) -> None:
    """Draw what a detector finds in images, and write it as COCO JSON.

    Example: `adapt predict runs/bccd/derived.onnx photos/ --out runs/predictions`
    """
    from adapt.data.images import find_images
    from adapt.progress import console_stage
    from bench.networks.measure import usual_runtime
    from export.run.predict import predict
    from export.run.runner import open_runner

    found = find_images(images)
    with (
        open_runner(runtime or usual_runtime(artifact), artifact, threads) as runner,
        console_stage("predict") as progress,
    ):
        content = predict(runner, found, out, score_threshold=score, progress=progress)
    summary = {"images": len(found), "detections": len(content["annotations"]), "out": str(out)}
    _show(summary, as_json=as_json)


@app.command("parity")
def parity_command(
    first: Annotated[Path, typer.Argument(help="Detector (.safetensors), ONNX file or engine.")],
    second: Annotated[Path, typer.Argument(help="Another artifact of the same detector.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    score_tol: Annotated[
        float, typer.Option("--score-tol", min=0, help="Largest difference of scores.")
    ] = 1e-4,
    box_tol: Annotated[
        float, typer.Option("--box-tol", min=0, help="Largest difference of boxes in pixels.")
    ] = 0.05,
    head_tol: Annotated[
        float, typer.Option("--head-tol", min=0, help="Largest difference of logits and deltas.")
    ] = 1e-3,
    as_json: JsonOpt = False,
) -> None:
    """Compare what two artifacts of one detector find; exit code 1 if they differ.

    If one of the two ends in raw heads (tail `none`), those are compared.

    Example: `adapt parity derived.onnx derived-fp16.onnx photos/ --score-tol 0.01 --box-tol 1`
    """
    from adapt.data.images import find_images
    from adapt.progress import console_stage
    from bench.networks.measure import usual_runtime
    from export.run.parity import Tolerances, compare_artifacts
    from export.run.runner import open_runner

    found = find_images(images)
    with (
        open_runner(usual_runtime(first), first) as a,
        open_runner(usual_runtime(second), second) as b,
        console_stage("parity") as progress,
    ):
        tolerances = Tolerances(score_tol, box_tol, head_tol)
        report = compare_artifacts(a, b, found, tolerances=tolerances, progress=progress)
    _show(report.to_dict(), as_json=as_json, title="parity")
    if not report.passed:
        raise typer.Exit(1)


@app.command("bench")
def bench_command(
    artifacts: Annotated[list[Path], typer.Argument(help="Detectors (.safetensors, .onnx).")],
    data: Annotated[Path, typer.Option("--data", help="Folder of a COCO-format data set.")],
    split: Annotated[str, typer.Option("--split", help="Split to evaluate.")] = "val",
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("runs/report"),
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="Runtime, repeatable; each file's usual one if left out."),
    ] = None,
    threads: ThreadsOpt = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Interleaved rounds.")] = 10,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="First N images.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Measure mAP and latency of the same artifacts in one run, and write a report.

    Example: `adapt bench runs/bccd/*.onnx --data datasets/bccd --split test`
    """
    from dataclasses import replace

    from adapt.data.coco import load_split
    from adapt.progress import console_stage
    from bench.networks.measure import DETECTOR_PROTOCOL, compare, named
    from bench.networks.report import rich_table, write_report

    loaded = load_split(data, split).limit(limit)
    protocol = replace(DETECTOR_PROTOCOL, rounds=rounds)
    with console_stage("bench") as progress:
        result = compare(
            named(artifacts, runtime or ()),
            loaded,
            threads=threads,
            protocol=protocol,
            progress=progress,
        )
    write_report(out, result)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        Console().print(rich_table(result))
        print(f"report: {out / 'report.md'}")


@app.command("run")
def run_command(
    recipe: RecipeArg,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of all results.")] = None,
    data: DataOpt = None,
    init: InitOpt = None,
    weights: WeightsOpt = None,
    limit_steps: LimitOpt = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline of a recipe: profile, search, derive, finetune, export, bench.

    Finished stages are reused and a stopped one continues.

    Example: `adapt run recipes/bccd-cpu.toml`
    """
    from search.estimate import estimate_run

    loaded = _load_recipe(recipe, data, init, weights)
    if dry_run:
        train = loaded.split(loaded.data.train)
        estimate = estimate_run(loaded, len(train), len(train.class_names), limit_steps)
        _show(estimate.to_dict(), as_json=as_json, title="estimate")
        return
    _run(loaded, out or Path("runs") / loaded.name, limit_steps, as_json=as_json)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", help="Folder of all results.")] = Path("runs/demo"),
    init: InitOpt = None,
    weights: WeightsOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Run the whole pipeline on a generated data set, in minutes on a CPU.

    Example: `adapt demo`
    """
    from adapt.data.synthetic import generate
    from adapt.progress import console_stage

    with console_stage("generate data") as progress:
        generate(out / "data", progress=progress)
    _run(_load_recipe("demo", out / "data", init, weights), out, None, as_json=as_json)


def _run(recipe: "Recipe", out: Path, limit_steps: int | None, *, as_json: bool) -> None:
    from adapt.progress import console_stage
    from bench.pipeline import Run
    from search.train.world import alone_or_refused

    alone_or_refused("adapt run")
    run = Run(recipe, out, stage=console_stage, limit_steps=limit_steps, warn=_warn)
    result = run.execute()
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _show_run(result)


def _show_run(result: "RunResult") -> None:
    from bench.networks.report import rich_table

    reused = [name for name, state in result.stages.items() if state == "reused"]
    if reused:
        print(f"reused: {', '.join(reused)}", file=sys.stderr)
    Console().print(rich_table(result.bench))
    for line in result.summary():
        print(line)


if __name__ == "__main__":
    app()
