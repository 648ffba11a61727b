"""What does a recipe's search pay for? (multiply-adds, or latencies from a table)"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from adapt.architecture import Architecture
from adapt.artifacts import file_hash
from adapt.coco import CocoSplit
from adapt.cost import CostModel, detector_cost
from adapt.cost_table import CostTable, predict_latency
from adapt.errors import AdaptError
from adapt.machine import processor_name
from adapt.runtime import usual_tail
from adapt.units import madds
from search.recipe import Recipe

Unit = Literal["ms", "madds"]
_UNITS: dict[str, tuple[Unit, float]] = {
    "ms": ("ms", 1.0),
    "us": ("ms", 1e-3),
    "M": ("madds", 1e6),
    "G": ("madds", 1e9),
}


@dataclass(frozen=True)
class Budget:
    """What a detector may cost at most.

    Attributes:
        unit: ``ms`` of latency or ``madds``.
        amount: Milliseconds or multiply-adds.
    """

    unit: Unit
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:g} ms" if self.unit == "ms" else f"{self.amount / 1e9:g} GMAdds"

    @classmethod
    def parse(cls, text: str, option: str = "--budget") -> "Budget":
        """Read ``4.0ms``, ``850us``, ``134.9G`` or ``900M``.

        Args:
            text: What the user wrote.
            option: Where, for the error.

        Raises:
            AdaptError: If the text has another form.
        """
        match = re.fullmatch(r"\s*([0-9.]+)\s*(ms|us|M|G)\s*", text)
        try:
            amount = float(match[1]) if match else 0.0
        except ValueError:
            amount = 0.0
        if not match or amount <= 0:
            raise AdaptError(f"{option} must be like 4.0ms or 134.9G (multiply-adds), got {text!r}")
        unit, factor = _UNITS[match[2]]
        return cls(unit, amount * factor)

    def in_sums(self, table: CostTable | None) -> float:
        """Return the amount that sums of table rows must not exceed.

        Milliseconds are of the latency that the table's certificate predicts from such a sum.
        """
        certificate = table.certificate if table is not None and self.unit == "ms" else None
        if certificate is None:
            return self.amount
        return float((self.amount - certificate["offset_ms"]) / certificate["scale"])


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


def search_cost(
    recipe: Recipe, train: CocoSplit, costs: Path | None, *, uncertified: bool = False
) -> tuple[CostModel, dict[str, Any]]:
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
        return madds_cost(recipe, classes), provenance
    if costs is None:
        raise AdaptError(
            "a search for latency needs a cost table; measure one with `adapt profile RECIPE` and "
            "pass it with --costs"
        )
    with CostTable.open(costs) as table:
        if not uncertified:
            check_certificate(table)
        return latency_cost(recipe, classes, table), {**provenance, "costs": table.hash}


def costs_of(
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
