"""Which commands search and train? (`adapt search`, `adapt finetune`)"""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adapt.command_line import DryRunOpt, JsonOpt, grouped, show, warn
from adapt.commands import data_app

if TYPE_CHECKING:
    from adapt.data.coco import CocoSplit
    from search.recipe.budget import Budget
    from search.recipe.recipe import Recipe
    from search.train.session import Session

OutOpt = Annotated[Path | None, typer.Option("--out", help="Folder of the results.")]
DataOpt = Annotated[
    Path | None, typer.Option("--data", help="Data set (COCO, VOC or YOLO), not the recipe's.")
]
LimitOpt = Annotated[
    int | None,
    typer.Option("--limit-steps", min=1, help="Stop every training phase after so many steps."),
]


@dataclass(frozen=True)
class RecipeOptions:
    """Which recipe, on which data."""

    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Preset (`paper`, `demo`) or path of a .toml file."),
    ]
    data: DataOpt = None

    def load(self) -> "Recipe":
        """Read the recipe."""
        from search.recipe.recipe import Recipe

        return Recipe.load(self.recipe).with_data(self.data)


@dataclass(frozen=True)
class StartOptions:
    """Where parameters start."""

    init: Annotated[
        Literal["imagenet", "scratch"] | None,
        typer.Option("--init", help="Where parameters start, not the recipe's choice."),
    ] = None
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weight file of the source backbone.")
    ] = None

    def apply(self, recipe: "Recipe") -> "Recipe":
        """Return the recipe with these options."""
        return recipe.with_init(self.init, self.weights)


@dataclass(frozen=True)
class TrainingOptions:
    """How many steps a training takes, and how they are computed."""

    limit_steps: LimitOpt = None
    amp: Annotated[
        Literal["off", "bf16", "fp16"] | None,
        typer.Option("--amp", help="Type that the networks compute in while they train."),
    ] = None
    accumulate: Annotated[
        int | None,
        typer.Option("--accumulate", min=1, help="Parts of a batch, computed one by one."),
    ] = None
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False

    def apply(self, recipe: "Recipe", phase: Literal["search", "finetune"]) -> "Recipe":
        """Return the recipe with these options for one of its trainings."""
        recipe = recipe.with_compute(amp=self.amp, compile=self.compiled or None)
        return recipe.with_accumulate(**{phase: self.accumulate})

    def session(
        self, title: str, provenance: Mapping[str, Any] | None = None
    ) -> "AbstractContextManager[Session]":
        """Join the processes that were started, with a progress display and warnings."""
        from adapt.progress import console_stage
        from search.train.session import joined_session

        return joined_session(
            title,
            stage=console_stage,
            warn=warn,
            limit_steps=self.limit_steps,
            provenance=provenance,
        )


@dataclass(frozen=True)
class SearchOptions:
    """Which cost a search minimises, and which candidates its steps run."""

    cost: Annotated[
        Literal["madds", "latency"] | None,
        typer.Option("--cost", help="What to pay for, not the recipe's choice."),
    ] = None
    target: Annotated[
        str | None,
        typer.Option("--target", help="Cost to end at, such as 4.0ms or 134.9G; learns lambda."),
    ] = None
    cost_weight: Annotated[
        float | None,
        typer.Option("--cost-weight", min=0, help="Fixed lambda, or its start with a target."),
    ] = None
    paths: Annotated[
        str | None,
        typer.Option(
            "--paths",
            help="Candidates per position that a step runs: all or a number; WEIGHT:ARCH for "
            "different ones in weight and architecture steps.",
        ),
    ] = None
    bi_sampling: Annotated[
        bool, typer.Option("--bi-sampling", help="Train a second path of other candidates too.")
    ] = False
    recompute: Annotated[
        Literal["off", "norms", "operation", "block"] | None,
        typer.Option("--recompute", help="Compute again in the backward pass, to save memory."),
    ] = None

    def apply(self, recipe: "Recipe") -> "Recipe":
        """Return the recipe with these options."""
        from search.recipe.optimisation import parse_paths

        return recipe.with_compute(recompute=self.recompute).with_search(
            cost=self.cost,
            target=self.target,
            cost_weight=self.cost_weight,
            bi_sampling=self.bi_sampling or None,
            **parse_paths(self.paths),
        )


@dataclass(frozen=True)
class CostsOptions:
    """Which cost table is used, and whether it must be certified."""

    costs: Annotated[
        Path | None, typer.Option("--costs", help="Cost table that `adapt profile` wrote.")
    ] = None
    uncertified: Annotated[
        bool,
        typer.Option("--uncertified", help="Use a cost table without a certificate."),
    ] = False

    def tell_certificate(self, budget: "Budget | None" = None, *, heard: bool = True) -> None:
        """Print on stderr how well the table predicts detectors, if there is one.

        Args:
            budget: Warn if the certificate does not reach as far as this.
            heard: Whether this process is the one that talks.
        """
        from adapt.cost.table import CostTable
        from search.recipe.search_cost import certificate_line, range_warning, ranking_warning

        if self.costs and heard:
            with CostTable.open(self.costs) as table:
                print(certificate_line(table), file=sys.stderr)
                for warning in filter(None, (ranking_warning(table), range_warning(table, budget))):
                    warn(warning)


def tell_doubts(recipe: "Recipe", split: "CocoSplit", *, heard: bool) -> None:
    """Warn of what was repaired in a split, and of more boxes than the detector returns.

    Args:
        recipe: The recipe of the detector.
        split: The images.
        heard: Whether this process is the one that talks.
    """
    for doubt in split.doubts(recipe.detector.detections) if heard else ():
        warn(doubt)


def tell_untaught(recipe: "Recipe", train: "CocoSplit", *, heard: bool) -> None:
    """Warn of classes that the validation split has and the training does not.

    Args:
        recipe: The recipe of the data set.
        train: The training images.
        heard: Whether this process is the one that talks.
    """
    from adapt.errors import AdaptError

    if not heard:
        return
    try:
        held_out = recipe.split(recipe.data.val)
    except AdaptError:  # a machine that only trains needs no such split
        return
    if doubt := held_out.untaught(train):
        warn(doubt)


def show_estimate(
    recipe: "Recipe", limit_steps: int | None, part: str | None = None, *, as_json: bool
) -> None:
    """Show steps, memory and hours of a run of the recipe, or of a part of it, for a dry run."""
    from search.estimate import estimate_run
    from search.train.validation import validation_split

    train = recipe.split(recipe.data.train)
    val = validation_split(recipe, train)
    classes, evaluated = len(train.class_names), len(val) if val else 0
    estimate = estimate_run(recipe, len(train), classes, limit_steps, evaluated).to_dict()
    show(estimate[part] if part else estimate, as_json=as_json, title="estimate")


@grouped
def search_command(
    recipe_options: RecipeOptions,
    search_options: SearchOptions,
    costs: CostsOptions,
    training: TrainingOptions,
    start: StartOptions,
    out: OutOpt = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Search operations, depth and widths inside the detector.

    A stopped search continues with the same command. Several processes, each with its GPU:
    `torchrun --nproc-per-node 4 -m cli search RECIPE`.

    Example: `adapt search recipes/bccd-cpu.toml --cost latency --costs runs/costs.sqlite`
    """
    from search.derive.decision import Decision
    from search.recipe.search_cost import search_cost
    from search.supernet.run import run_search

    recipe = search_options.apply(training.apply(start.apply(recipe_options.load()), "search"))
    if dry_run:
        show_estimate(recipe, training.limit_steps, as_json=as_json)
        return
    train = recipe.split(recipe.data.train)
    cost = search_cost(recipe, train, costs.costs, uncertified=costs.uncertified)
    folder = out or Path("runs") / recipe.name / "search"
    with (
        training.session("search", cost.provenance) as session,
        session.alone(folder / ".lock"),
    ):
        tell_doubts(recipe, train, heard=session.world.is_main)
        costs.tell_certificate(recipe.search.parsed_target(), heard=session.world.is_main)
        path = run_search(recipe, train, cost.model, folder, session)
    if session.world.is_main:
        decided = Decision.stored(path).to_dict()
        shown = {"supernet": str(path), "plot": folder / "search.png", "decided": decided}
        show({**shown, "next": f"adapt derive {path}"}, as_json=as_json)


@grouped
def finetune_command(
    recipe_options: RecipeOptions,
    arch: Annotated[
        str,
        typer.Option(
            "--arch", help="Architecture file, or a network's name: mobilenet_v2, fna, fbnet_c, ..."
        ),
    ],
    training: TrainingOptions,
    start: StartOptions,
    start_from: Annotated[
        Path | None,
        typer.Option("--from", help="Trained detector to start from: its pyramid and heads too."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option("--teacher", help="Trained detector whose pyramid is imitated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Detector file to write.")] = None,
    dry_run: DryRunOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Map the pretrained parameters to an architecture and train the detector.

    A stopped training continues with the same command. Several processes, each with its GPU:
    `torchrun --nproc-per-node 4 -m cli finetune RECIPE --arch ARCH`.

    Example: `adapt finetune recipes/bccd-cpu.toml --arch runs/bccd/arch.json`
    """
    from adapt.detector.file import read_detector_info
    from search.train.finetune import resolve_architecture, run_finetune
    from search.train.teacher import TrainedFiles

    recipe = training.apply(start.apply(recipe_options.load()), "finetune")
    own, (architecture, recipe) = recipe.setting, resolve_architecture(arch, recipe)
    if recipe.setting != own:
        warn(f"{arch} was chosen with another setting and is trained in it: {recipe.setting}")
    if dry_run:
        show_estimate(recipe, training.limit_steps, "finetune", as_json=as_json)
        return
    path = out or Path("runs") / recipe.name / f"{Path(arch).stem}.safetensors"
    train = recipe.split(recipe.data.train)
    with (
        training.session("finetune") as session,
        session.alone(path.with_suffix(".lock")),
    ):
        tell_doubts(recipe, train, heard=session.world.is_main)
        tell_untaught(recipe, train, heard=session.world.is_main)
        trained = TrainedFiles(start_from, teacher)
        run_finetune(recipe, architecture, train, path, session, trained)
    if session.world.is_main:
        _, content = read_detector_info(path)
        lost = {"lost_variance": content["lost_variance"]} if content["lost_variance"] else {}
        result = {"detector": str(path), **lost, **content.get("written", {})}
        show({**result, "next": f"adapt export {path}"}, as_json=as_json)


@data_app.command("speed")
@grouped
def data_speed_command(
    recipe: RecipeOptions,
    workers: Annotated[
        list[int] | None,
        typer.Option("--workers", min=0, help="Processes that load, repeatable: 0, 2, 4."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Of each measurement.")
    ] = 3.0,
    as_json: JsonOpt = False,
) -> None:
    """Measure how fast training images are loaded, and whether training has to wait for them.

    Example: `adapt data speed recipes/bccd-cpu.toml --workers 0 --workers 2`
    """
    from adapt.machine import usable_cores
    from adapt.progress import console_stage
    from search.train.speed import measure_speeds

    asked = recipe.load()
    train = asked.split(asked.data.train)
    numbers = workers or sorted({0, 1, usable_cores(), asked.data.workers})
    with console_stage("measure") as progress:
        found = measure_speeds(asked, train, numbers, seconds, progress)
    show(found.to_dict() if as_json else found.readable(), as_json=as_json)


@grouped
def score_command(
    recipe_options: RecipeOptions,
    trained: Annotated[
        Path, typer.Option("--from", help="Detector of the source that `adapt finetune` trained.")
    ],
    networks: Annotated[
        int | None,
        typer.Option("--networks", min=10, help="Random networks of the certificate."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Score what every choice of the space costs a trained detector in loss, one at a time.

    One scores file serves any budget and any device: `adapt derive` sums them.

    Example: `adapt score recipes/bccd-cpu.toml --from runs/bccd-cpu/source.safetensors`
    """
    from adapt.progress import console_stage
    from search.derive.scores import doubt
    from search.score.run import run_score

    recipe = recipe_options.load().with_search(score_networks=networks)
    path = out or Path("runs") / recipe.name / "scores.json"
    with console_stage("score") as progress:
        result = run_score(recipe, trained, path, progress=progress)
    show({**result, "next": f"adapt derive {path} --budget 9.5ms --costs COSTS"}, as_json=as_json)
    if found := doubt({"tau": result["tau"]}, path):
        warn(found)
