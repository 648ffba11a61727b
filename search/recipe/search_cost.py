"""Which cost does a recipe's search minimise: multiply-adds, or latencies of a fitting table?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from adapt.cost.expectation import CostModel, detector_cost
from adapt.cost.resolution import check_resolution
from adapt.cost.table import CostTable, predict_latency
from adapt.cost.units import madds
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from adapt.machine import processor_name
from adapt.runtime import usual_tail
from search.recipe.budget import ROUNDING, Budget
from search.recipe.recipe import Recipe

RANKED = 10  # detectors of which a rank correlation says something
LEAST_TAU = 0.8  # of a quiet machine it is above 0.9


def madds_cost(recipe: Recipe, num_classes: int) -> CostModel:
    """Return the multiply-adds of every choice of a recipe's space."""
    return recipe.detectors(num_classes, recipe.measured_size()).costs(madds)


def latency_cost(recipe: Recipe, num_classes: int, table: CostTable) -> CostModel:
    """Return the latency in ms of every choice of a recipe's space.

    If the table has a certificate, it corrects the latencies.

    Raises:
        AdaptError: If the table was measured under other conditions than the recipe's device, lacks
            a unit of its space, or has no latency for many.
    """
    check_table(recipe, table)
    detectors = recipe.detectors(num_classes)
    check_resolution(table, detectors.units())
    return detectors.costs(table.lookup).corrected(*table.correction)


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
        device=recipe.device.name or _this_processor(table),
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


def _this_processor(table: CostTable) -> str | None:
    """Return the processor that a table must be of; None if it is of a GPU."""
    # Searches often run on another GPU than the one that the table was measured on.
    of_gpu = table.conditions.runtime in ("ort-cuda", "tensorrt", "tensorrt-rtx")
    eager_on_gpu = table.conditions.runtime == "torch" and table.conditions.threads == 0
    return None if of_gpu or eager_on_gpu else processor_name()


def check_certificate(table: CostTable) -> None:
    """Check that it is known how well a table predicts whole detectors.

    Raises:
        AdaptError: With the command that measures it.
    """
    if table.certificate is None:
        raise AdaptError(
            f"{table.path} has no certificate for its present rows, so nobody knows how well it "
            f"predicts detectors; run `adapt costs certify RECIPE {table.path}`, or pass "
            "--uncertified to use it as it is"
        )


def certificate_line(table: CostTable) -> str:
    """Return in one line how well a table predicts whole detectors."""
    certificate = table.certificate
    if certificate is None:
        return f"{table.path}: not certified"
    return (
        f"{table.path} ({table.conditions}, {table.conditions.device}): over "
        f"{certificate['detectors']} detectors MAPE {certificate['mape']:.1%}, bias "
        f"{certificate['bias']:+.1%}, worst {certificate['worst']:.1%}, Kendall tau "
        f"{certificate['kendall_tau']:.2f}; {certificate['mape_corrected']:.1%} after correction"
    )


def range_warning(table: CostTable, budget: Budget | None) -> str | None:
    """Return a warning if no detector of a certificate was as cheap, or as dear, as a budget."""
    if budget is None or budget.unit != "ms" or table.certified_ms is None:
        return None
    least, most = table.certified_ms
    if least * (1 - ROUNDING) <= budget.amount <= most * (1 + ROUNDING):
        return None
    return (
        f"{budget} lies outside of the {least:.4g} to {most:.4g} ms for which the certificate of "
        f"{table.path} knows how well it predicts; measure with `adapt derive --verify`, or "
        f"certify it for this recipe with `adapt costs certify RECIPE {table.path}`"
    )


def ranking_warning(table: CostTable) -> str | None:
    """Return a warning if a table ranked whole detectors badly, as one of a busy machine does."""
    certificate = table.certificate
    if certificate is None or certificate["detectors"] < RANKED:
        return None
    tau, error = certificate["kendall_tau"], certificate["mape_corrected"]
    if tau >= LEAST_TAU:
        return None
    return (
        f"{table.path} ranks {certificate['detectors']} measured detectors with a Kendall tau of "
        f"{tau:.2f} only, its predictions off by {error:.0%} after correction: networks chosen by "
        "it may be slower than others; if the machine was busy, delete it, and measure again when "
        "it is quiet"
    )


@dataclass(frozen=True)
class SearchCost:
    """What a search minimises beside its loss: C of Eq. 4.

    Attributes:
        model: Cost of every choice, in MAdds or milliseconds.
        provenance: Hashes of the data set and of the table; a resumed search must have the same.
    """

    model: CostModel
    provenance: dict[str, Any]


def search_cost(
    recipe: Recipe, train: CocoSplit, costs: Path | None, *, uncertified: bool = False
) -> SearchCost:
    """Return the cost that a recipe's search minimises.

    Args:
        recipe: The run.
        train: Training images.
        costs: Cost table; needed for ``cost = "latency"``.
        uncertified: Whether a table without a certificate will do.

    Raises:
        AdaptError: If the table is missing, does not fit or has no certificate.
    """
    classes = len(train.class_names)
    provenance: dict[str, Any] = {"annotations_sha256": train.sha256}
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
        provenance |= {"costs": table.hash, "correction": table.correction}
        return SearchCost(latency_cost(recipe, classes, table), provenance)


def network_costs(
    architecture: Architecture, recipe: Recipe, num_classes: int, table: CostTable | None = None
) -> dict[str, float]:
    """Return the MAdds of one network's detector, and its latency where a table is given.

    ``predicted_ms`` is the sum of the table's rows. ``corrected_ms`` is that sum after the linear
    correction of the table's certificate, if it has one.
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
