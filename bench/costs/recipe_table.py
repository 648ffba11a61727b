"""Which cost table does a recipe need, and what does measuring it take?"""

from pathlib import Path
from typing import Any

from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs import certify as certificates
from bench.costs.profiler import ROW_BYTES, estimate_seconds, profile, unit_protocol
from bench.costs.selection import EVERYTHING, Part, select
from bench.latency.backend import Backend, conditions, open_backend
from bench.latency.workers import Measurement
from search.recipe.recipe import Recipe


def recipe_backend(recipe: Recipe, table: Path | None = None) -> Backend:
    """Return the backend that a recipe's device describes.

    Args:
        recipe: The recipe.
        table: Cost table; TensorRT builds share their tactic timings in a file beside it.

    Raises:
        AdaptError: If the device's numbers are out of range.
    """
    device = recipe.device
    return open_backend(
        device.runtime,
        precision=device.precision,
        batch=device.batch,
        threads=device.threads,
        timing_cache=table.with_suffix(".timing-cache") if table else None,
    )


def selection_summary(
    recipe: Recipe,
    num_classes: int,
    out: Path,
    part: Part = EVERYTHING,
    build_jobs: int = 1,
) -> dict[str, Any]:
    """Return what ``adapt profile`` would measure, timing a few units to say how long it takes.

    Args:
        recipe: The recipe.
        num_classes: Classes of its data set.
        out: Cost table, which may exist already.
        part: Which of the units are measured here.
        build_jobs: Engines that are built at once.
    """
    detectors, backend = recipe.detectors(num_classes), recipe_backend(recipe)
    if out.exists():
        with CostTable.open(out) as table:
            chosen = select(detectors, table, part)
    else:
        chosen = select(detectors, part=part)
    how = Measurement(backend, unit_protocol(backend), build_jobs=build_jobs)
    try:
        seconds: float | str = round(estimate_seconds(chosen, how))
    except AdaptError as error:  # a selection for another machine
        seconds = f"unknown: {error}"
    rows = len(chosen.wanted) + len(chosen.to_infer)
    return {
        "distinct_units": len(chosen.space),
        "measured_units": len(chosen.on_design),
        "share_measured": round(len(chosen.on_design) / len(chosen.space), 3),
        "inferred_units": len(chosen.space) - len(chosen.on_design),
        "boundaries": len(chosen.wanted) - len(part.shard.of(chosen.on_design)),
        "already_measured": chosen.done,
        "to_measure": len(chosen.to_measure),
        "estimated_seconds": seconds,
        "table": str(out),
        "table_mb": round(rows * ROW_BYTES / 1e6, 1),
    }


def profile_recipe(
    recipe: Recipe,
    num_classes: int,
    out: Path,
    part: Part = EVERYTHING,
    build_jobs: int = 1,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every unit of a recipe's space that the table lacks.

    Raises:
        AdaptError: If the table was measured under other conditions, or units could not be
            measured; what was measured is kept.
    """
    backend = recipe_backend(recipe, out)
    how = Measurement(backend, unit_protocol(backend), recipe.seed, build_jobs)
    summary = profile(recipe.detectors(num_classes), out, how, part, progress=progress)
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
    number: int = certificates.DETECTORS,
    build_jobs: int = 1,
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Certify a table for the space and the detector of a recipe, on this machine.

    Raises:
        AdaptError: If the table was measured elsewhere or lacks a unit.
    """
    detectors, backend = recipe.detectors(num_classes), recipe_backend(recipe, path)
    how = Measurement(backend, certificates.WHOLE_PROTOCOL, recipe.seed, build_jobs)
    with CostTable.open(path, writable=True) as table:
        table.check_resumable(conditions(backend, detectors.size))
        found = certificates.certify(table, detectors, how, number, progress=progress)
    return {k: v for k, v in found.to_dict().items() if k not in ("predicted_ms", "measured_ms")}
