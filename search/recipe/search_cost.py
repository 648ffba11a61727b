"""What does a recipe's search pay for? (multiply-adds, or latencies from a table)"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.architecture import Architecture
from adapt.artifacts import file_hash
from adapt.cost.expectation import CostModel, detector_cost
from adapt.cost.table import CostTable, predict_latency
from adapt.cost.units import madds
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from adapt.machine import processor_name
from adapt.runtime import usual_tail
from search.recipe.recipe import Recipe


def madds_cost(recipe: Recipe, num_classes: int) -> CostModel:
    """Return the multiply-adds of every choice."""
    return recipe.detectors(num_classes, recipe.measured_size()).costs(madds)


def latency_cost(recipe: Recipe, num_classes: int, table: CostTable) -> CostModel:
    """Return the latency of every choice in milliseconds, as the table's certificate corrects it.

    Raises:
        AdaptError: If the table was measured under other conditions than the recipe's device, or
            lacks a unit of its space.
    """
    check_table(recipe, table)
    return recipe.detectors(num_classes).costs(table.lookup).corrected(*table.correction)


def check_table(recipe: Recipe, table: CostTable) -> None:
    """Check that a table was measured for the device of a recipe.

    Raises:
        AdaptError: With both conditions and the fix.
    """
    size = recipe.input.fixed()
    table.check(
        runtime=recipe.device.runtime,
        precision=recipe.device.precision,
        batch=recipe.device.batch,
        size=size,
        device=recipe.device.name or _own_device(recipe),
    )
    tail = usual_tail(recipe.device.runtime)
    if table.conditions.tail != tail:
        raise AdaptError(
            f"{table.path} was measured with graphs that end in {table.conditions.tail}, detectors "
            f"for {recipe.device.runtime} end in {tail}; measure again with `adapt profile`"
        )
    if table.conditions.threads not in (0, recipe.device.threads):  # 0: a GPU does the work
        raise AdaptError(
            f"{table.path} was measured with {table.conditions.threads} threads, recipe "
            f"{recipe.name!r} asks for {recipe.device.threads}; run `adapt profile` with this "
            "recipe, or set device.threads"
        )


def _own_device(recipe: Recipe) -> str | None:
    """Return this machine's processor; a table of a GPU may be used on another machine."""
    on_gpu = recipe.device.runtime in ("ort-cuda", "tensorrt", "tensorrt-rtx")
    return None if on_gpu or torch.cuda.is_available() else processor_name()


def check_certificate(table: CostTable) -> None:
    """Check that somebody measured how well a table predicts whole detectors.

    Raises:
        AdaptError: With the command that does.
    """
    if table.certificate is None:
        raise AdaptError(
            f"{table.path} has no certificate for its present rows, so nobody knows how well it "
            f"predicts detectors; run `adapt costs certify RECIPE {table.path}`, or pass "
            "--uncertified to use it as it is"
        )


def certificate_line(table: CostTable) -> str:
    """Return in one line how far a table can be trusted."""
    found = table.certificate
    if found is None:
        return f"{table.path}: not certified"
    return (
        f"{table.path} ({table.conditions}, {table.conditions.device}): over "
        f"{found['detectors']} random detectors MAPE {found['mape']:.1%}, bias "
        f"{found['bias']:+.1%}, worst {found['worst']:.1%}, Kendall tau "
        f"{found['kendall_tau']:.2f}; {found['mape_corrected']:.1%} after correction"
    )


@dataclass(frozen=True)
class SearchCost:
    """What a search pays for.

    Attributes:
        model: Cost of every choice, in MAdds or milliseconds.
        provenance: What identifies the inputs.
    """

    model: CostModel
    provenance: dict[str, Any]


def search_cost(
    recipe: Recipe, train: CocoSplit, costs: Path | None, *, uncertified: bool = False
) -> SearchCost:
    """Return the cost model of a search, and what identifies its inputs.

    Args:
        recipe: The run.
        train: Training images.
        costs: Cost table; needed for ``cost = "latency"``.
        uncertified: Whether a table without a certificate will do.

    Raises:
        AdaptError: If the table is missing, does not fit or has no certificate.
    """
    classes = len(train.class_names)
    provenance: dict[str, Any] = {"annotations_sha256": file_hash(train.annotations)}
    if recipe.search.cost == "madds":
        if costs is not None:
            raise AdaptError(
                f"a search for multiply-adds does not use {costs}; pass --cost latency with it, or "
                "leave out --costs"
            )
        return SearchCost(madds_cost(recipe, classes), provenance)
    if costs is None:
        raise AdaptError(
            "a search for latency needs a cost table; measure one with `adapt profile RECIPE` and "
            "pass it with --costs"
        )
    with CostTable.open(costs) as table:
        if not uncertified:
            check_certificate(table)
        identity = {**provenance, "costs": table.hash, "correction": table.correction}
        return SearchCost(latency_cost(recipe, classes, table), identity)


def network_costs(
    architecture: Architecture, recipe: Recipe, num_classes: int, table: CostTable | None = None
) -> dict[str, float]:
    """Return the MAdds of a detector, and its latency where a table is given.

    ``predicted_ms`` is the sum of the table's rows; ``corrected_ms`` takes out what the table's
    certificate found to be wrong with such sums.
    """
    config = recipe.detector_config(num_classes)
    costs = {"madds": detector_cost(architecture, config, recipe.measured_size(), madds)}
    if table is not None:  # an empty one is false
        check_table(recipe, table)
        size = recipe.input.fixed()
        costs["predicted_ms"] = predict_latency(table, architecture, config, size)
        if table.certificate:
            costs["corrected_ms"] = table.corrected(costs["predicted_ms"])
    return costs
