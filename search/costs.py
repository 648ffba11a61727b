"""What does a recipe's search pay for? (multiply-adds, or latencies from a table)"""

from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.artifacts import file_hash
from adapt.coco import CocoSplit
from adapt.cost import CostModel, detector_cost
from adapt.cost_table import CostTable, predict_latency
from adapt.errors import AdaptError
from adapt.machine import processor_name
from adapt.units import madds
from search.recipe import Recipe


def madds_cost(recipe: Recipe, num_classes: int) -> CostModel:
    """Return the multiply-adds of every choice."""
    config = recipe.detector_config(num_classes)
    return CostModel.build(recipe.space.load(), config, recipe.measured_size(), madds)


def latency_cost(recipe: Recipe, num_classes: int, table: CostTable) -> CostModel:
    """Return the latency of every choice in milliseconds.

    Raises:
        AdaptError: If the table was measured under other conditions than the recipe's device, or
            lacks a unit of its space.
    """
    check_table(recipe, table)
    config = recipe.detector_config(num_classes)
    return CostModel.build(recipe.space.load(), config, recipe.input.fixed(), table.lookup)


def check_table(recipe: Recipe, table: CostTable) -> None:
    """Check that a table was measured for the device of a recipe.

    Raises:
        AdaptError: With both conditions and the fix.
    """
    size = recipe.input.fixed()
    table.check(
        runtime=recipe.device.runtime,
        precision="fp32",
        batch=1,
        size=size,
        device=recipe.device.name or processor_name(),
    )
    if table.conditions.threads != recipe.device.threads:
        raise AdaptError(
            f"{table.path} was measured with {table.conditions.threads} threads, recipe "
            f"{recipe.name!r} asks for {recipe.device.threads}; run `adapt profile` with this "
            "recipe, or set device.threads"
        )


def search_cost(
    recipe: Recipe, train: CocoSplit, costs: Path | None
) -> tuple[CostModel, dict[str, Any]]:
    """Return the cost model of a search, and what identifies its inputs.

    Args:
        recipe: The run.
        train: Training images.
        costs: Cost table; needed for ``cost = "latency"``.

    Raises:
        AdaptError: If the table is missing or does not fit.
    """
    classes = len(train.class_names)
    provenance: dict[str, Any] = {"annotations_sha256": file_hash(train.annotations)}
    if recipe.search.cost == "madds":
        return madds_cost(recipe, classes), provenance
    if costs is None:
        raise AdaptError(
            "a search for latency needs a cost table; measure one with `adapt profile RECIPE` and "
            "pass it with --costs"
        )
    with CostTable.open(costs) as table:
        return latency_cost(recipe, classes, table), {**provenance, "costs": table.hash}


def costs_of(
    architecture: Architecture, recipe: Recipe, num_classes: int, table: CostTable | None = None
) -> dict[str, float]:
    """Return the MAdds of a detector, and its latency where a table is given."""
    config = recipe.detector_config(num_classes)
    costs = {"madds": detector_cost(architecture, config, recipe.measured_size(), madds)}
    if table:
        check_table(recipe, table)
        size = recipe.input.fixed()
        costs["predicted_ms"] = predict_latency(table, architecture, config, size)
    return costs
