"""How does a search get from a recipe to `supernet.pt`? (steps, checkpoints, log and plot)"""

from pathlib import Path

from adapt.artifacts import content_hash, make_folder
from adapt.cost.expectation import CostModel
from adapt.data.coco import CocoSplit
from search.recipe.recipe import Recipe
from search.supernet.bilevel import METHOD, BilevelSearch
from search.supernet.board import draw_search
from search.supernet.log_entry import log_entry
from search.supernet.plot import plot_search
from search.train.checkpoint import Checkpoint, Clock
from search.train.log import LogFiles, TrainingLog, training_log
from search.train.loop import checkpointed, training_guarded
from search.train.session import Session

PLOT_MINUTES = 1.0  # a long search can be watched; a short one is drawn at its end


def run_search(
    recipe: Recipe,
    train: CocoSplit,
    cost: CostModel,
    out: Path,
    session: Session | None = None,
) -> Path:
    """Search, and write ``supernet.pt``, ``search.jsonl``, ``search.png`` and TensorBoard's files.

    Checkpoints are written after every epoch, and in between by the clock; the same call resumes
    from the last one, with another number of processes too.

    Args:
        recipe: How to search.
        train: Training images.
        cost: Cost of every choice, in MAdds or milliseconds.
        out: Folder of the results.
        session: Processes, progress, warnings and a limit of the steps.

    Returns:
        Path of the finished ``supernet.pt``.

    Raises:
        AdaptError: If the loss diverges, the target cannot be reached, or ``out`` holds another
            run.
    """
    session = session or Session()
    search = BilevelSearch(recipe, train, cost, session)
    checkpoint = _checkpoint(search, train, out, session)
    make_folder(out)  # before hours of work, not after
    start = checkpoint.resume(session.world)
    weights, images = recipe.search.weights, len(train) // 2
    # Only now: of inputs that cannot be searched on there is one sentence, the error.
    session.tell(weights.warm_up_doubt("search.weights", images, session.limit_steps))
    minutes = recipe.compute.checkpoint_minutes
    files = LogFiles(out / "search.jsonl", out / "tensorboard")
    with (
        training_log(files, start, draw_search, main=session.world.is_main) as log,
        training_guarded(out / "diverged.json", train, session.world),
    ):
        losses = search.steps(start)
        plot_due = Clock(PLOT_MINUTES)
        for step in checkpointed(losses, start, search.schedule, checkpoint, session, minutes):
            if search.schedule.ends_epoch(step):
                if log:
                    _write_epoch(search, step, log, session)
                    if plot_due.due():
                        plot_search(log.path, out / "search.png")
                search.losses.clear()
        if log and log.path.is_file():
            plot_search(log.path, out / "search.png")
    return checkpoint.path


def _checkpoint(search: BilevelSearch, train: CocoSplit, out: Path, session: Session) -> Checkpoint:
    recipe, provenance = search.recipe, dict(session.provenance)
    return Checkpoint(
        out / "supernet.pt",
        "supernet",
        search.parts,
        identity=content_hash([METHOD, recipe.search_hash, session.limit_steps, provenance]),
        fields={
            "method": METHOD,
            "recipe": recipe.to_dict(),
            "space": recipe.space.load().to_dict(),
            "class_names": list(train.class_names),
            "provenance": provenance,
            "total_steps": search.schedule.total_steps,
        },
    )


def _write_epoch(search: BilevelSearch, step: int, log: TrainingLog, session: Session) -> None:
    for warning in log.append(log_entry(search, step)):
        session.warn(warning)
