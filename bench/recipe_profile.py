"""Which cost table does a recipe need, and what does measuring it take?"""

from pathlib import Path
from typing import Any

from adapt.cost_table import CostTable
from adapt.progress import Progress, silent
from bench.certify import certify
from bench.profiler import WHOLE, Shard, estimate_seconds, ort_cpu_conditions, plan, profile
from search.recipe import Recipe


def plan_summary(
    recipe: Recipe, num_classes: int, out: Path, shard: Shard = WHOLE, grid: int = 1
) -> dict[str, Any]:
    """Return what ``adapt profile`` would measure, timing a few units to say how long it takes.

    Args:
        recipe: The recipe.
        num_classes: Classes of its data set.
        out: Cost table, which may exist already.
        shard: Part of the units to measure.
        grid: Width grid that is measured.
    """
    space, size = recipe.space.load(), recipe.input.fixed()
    config = recipe.detector_config(num_classes)
    if out.exists():
        with CostTable.open(out) as table:
            planned = plan(space, config, size, table, shard, grid)
    else:
        planned = plan(space, config, size, shard=shard, grid=grid)
    return {
        "distinct_units": len(planned.space),
        "on_the_grid": len(planned.units),
        "interpolated": len(planned.between),
        "already_measured": planned.measured,
        "to_measure": len(planned.to_measure),
        "estimated_seconds": round(estimate_seconds(planned, threads=recipe.device.threads)),
        "table": str(out),
    }


def profile_recipe(
    recipe: Recipe,
    num_classes: int,
    out: Path,
    *,
    shard: Shard = WHOLE,
    grid: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every unit of a recipe's space that the table lacks.

    Raises:
        AdaptError: If the table was measured under other conditions.
    """
    summary = profile(
        recipe.space.load(),
        recipe.detector_config(num_classes),
        recipe.input.fixed(),
        out,
        threads=recipe.device.threads,
        seed=recipe.seed,
        shard=shard,
        grid=grid,
        progress=progress,
    )
    return {
        "table": str(summary.table),
        "conditions": str(summary.conditions),
        "device": summary.conditions.device,
        "threads": summary.conditions.threads,
        "units": summary.units,
        "measured_now": summary.measured,
        "interpolated": summary.interpolated,
        "drifted": summary.drifted,
        "seconds": round(summary.seconds, 1),
    }


def certify_recipe(
    recipe: Recipe,
    num_classes: int,
    table: CostTable,
    detectors: int,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Certify a table for the space and the detector of a recipe, on this machine.

    Raises:
        AdaptError: If the table was measured elsewhere or lacks a unit.
    """
    size = recipe.input.fixed()
    table.check_resumable(ort_cpu_conditions(size, table.conditions.threads))
    config = recipe.detector_config(num_classes)
    return certify(
        table,
        recipe.space.load(),
        config,
        size,
        detectors=detectors,
        seed=recipe.seed,
        progress=progress,
    ).to_dict()
