"""Which cost table does a recipe need, and what does measuring it take?"""

from pathlib import Path
from typing import Any

from adapt.cost_table import CostTable
from adapt.progress import Progress, silent
from bench.profiler import estimate_seconds, plan, profile
from search.recipe import Recipe


def plan_summary(recipe: Recipe, num_classes: int, out: Path) -> dict[str, Any]:
    """Return what ``adapt profile`` would measure, timing a few units to say how long it takes.

    Args:
        recipe: The recipe.
        num_classes: Classes of its data set.
        out: Cost table, which may exist already.
    """
    space, size = recipe.space.load(), recipe.input.fixed()
    config = recipe.detector_config(num_classes)
    if out.exists():
        with CostTable.open(out) as table:
            planned = plan(space, config, size, table)
    else:
        planned = plan(space, config, size)
    return {
        "distinct_units": len(planned.units),
        "already_measured": planned.measured,
        "to_measure": len(planned.to_measure),
        "estimated_seconds": round(estimate_seconds(planned, threads=recipe.device.threads)),
        "table": str(out),
    }


def profile_recipe(
    recipe: Recipe, num_classes: int, out: Path, *, progress: Progress = silent
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
        progress=progress,
    )
    return {
        "table": str(summary.table),
        "conditions": str(summary.conditions),
        "device": summary.conditions.device,
        "threads": summary.conditions.threads,
        "units": summary.units,
        "measured_now": summary.measured,
        "drifted": summary.drifted,
        "seconds": round(summary.seconds, 1),
    }
