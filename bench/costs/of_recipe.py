"""Which cost table does a recipe need, and what does measuring it take?"""

from pathlib import Path
from typing import Any

from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs.certify import DETECTORS, certify
from bench.costs.profiler import ROW_BYTES, estimate_seconds, profile
from bench.costs.selection import WHOLE, Shard, plan
from bench.latency.backend import Target, conditions, open_target
from search.recipe.recipe import Recipe


def recipe_target(recipe: Recipe, table: Path | None = None) -> Target:
    """Return the target that a recipe's device describes.

    Args:
        recipe: The recipe.
        table: Cost table; TensorRT builds share their tactic timings in a file beside it.

    Raises:
        AdaptError: If the device's numbers are out of range.
    """
    device = recipe.device
    return open_target(
        device.runtime,
        precision=device.precision,
        batch=device.batch,
        threads=device.threads,
        timing_cache=table.with_suffix(".timing-cache") if table else None,
    )


def plan_summary(
    recipe: Recipe,
    num_classes: int,
    out: Path,
    shard: Shard = WHOLE,
    grid: int = 1,
    build_jobs: int = 1,
) -> dict[str, Any]:
    """Return what ``adapt profile`` would measure, timing a few units to say how long it takes.

    Args:
        recipe: The recipe.
        num_classes: Classes of its data set.
        out: Cost table, which may exist already.
        shard: Part of the units to measure.
        grid: 1 measures all units, larger ones infer most of them.
        build_jobs: Engines that are built at once.
    """
    space, size = recipe.space.load(), recipe.input.fixed()
    config, target = recipe.detector_config(num_classes), recipe_target(recipe)
    if out.exists():
        with CostTable.open(out) as table:
            work = plan(space, config, size, table, shard, grid)
    else:
        work = plan(space, config, size, shard=shard, grid=grid)
    try:
        seconds: float | str = round(estimate_seconds(work, target, build_jobs=build_jobs))
    except AdaptError as error:  # a plan for another machine
        seconds = f"unknown: {error}"
    rows = len(work.wanted) + len(work.to_infer)
    return {
        "distinct_units": len(work.space),
        "measured_units": len(work.on_design),
        "share_measured": round(len(work.on_design) / len(work.space), 3),
        "inferred_units": len(work.space) - len(work.on_design),
        "boundaries": len(work.wanted) - len(shard.of(work.on_design)),
        "already_measured": work.done,
        "to_measure": len(work.to_measure),
        "estimated_seconds": seconds,
        "table": str(out),
        "table_mb": round(rows * ROW_BYTES / 1e6, 1),
    }


def profile_recipe(
    recipe: Recipe,
    num_classes: int,
    out: Path,
    shard: Shard = WHOLE,
    grid: int = 1,
    build_jobs: int = 1,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every unit of a recipe's space that the table lacks.

    Raises:
        AdaptError: If the table was measured under other conditions, or units could not be
            measured; what was measured is kept.
    """
    summary = profile(
        recipe.space.load(),
        recipe.detector_config(num_classes),
        recipe.input.fixed(),
        out,
        recipe_target(recipe, out),
        seed=recipe.seed,
        shard=shard,
        grid=grid,
        build_jobs=build_jobs,
        progress=progress,
    )
    if summary.failed:
        key, reason = next(iter(summary.failed.items()))
        raise AdaptError(
            f"{len(summary.failed)} units could not be measured, the first is '{key}': {reason}; "
            f"{out} keeps the others: run the same command again to try these once more"
        )
    return {
        "table": str(summary.table),
        "conditions": str(summary.conditions),
        "device": summary.conditions.device,
        "threads": summary.conditions.threads,
        "units": summary.units,
        "measured_now": summary.measured,
        "inferred_now": summary.inferred,
        "drifted": summary.drifted,
        "seconds": round(summary.seconds, 1),
    }


def certify_recipe(
    recipe: Recipe,
    num_classes: int,
    path: Path,
    detectors: int = DETECTORS,
    build_jobs: int = 1,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Certify a table for the space and the detector of a recipe, on this machine.

    Raises:
        AdaptError: If the table was measured elsewhere or lacks a unit.
    """
    size, target = recipe.input.fixed(), recipe_target(recipe, path)
    with CostTable.open(path, writable=True) as table:
        table.check_resumable(conditions(target, size))
        found = certify(
            table,
            recipe.space.load(),
            recipe.detector_config(num_classes),
            size,
            target,
            detectors=detectors,
            seed=recipe.seed,
            build_jobs=build_jobs,
            progress=progress,
        )
    return {k: v for k, v in found.to_dict().items() if k not in ("predicted_ms", "measured_ms")}
