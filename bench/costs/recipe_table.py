"""How is the cost table of a recipe planned, measured and certified, on the recipe's device?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.resolution import check_resolution
from adapt.cost.table import CostTable
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs import certify as certification
from bench.costs.profiler import ROW_BYTES, estimate_seconds, profile, unit_protocol
from bench.costs.selection import EVERYTHING, Part, Selection, select
from bench.latency.backend import Backend, conditions, open_backend
from bench.latency.workers import Measurement
from export.engine.configure import check_candidates
from search.recipe.recipe import Recipe


def recipe_backend(recipe: Recipe, table: Path | None = None) -> Backend:
    """Return the backend that a recipe's device describes.

    Args:
        recipe: The recipe.
        table: Cost table; TensorRT builds share their tactic timings in a file beside it.

    Raises:
        AdaptError: If the device's numbers are out of range, or its TensorRT cannot rank as many
            candidates as the recipe's detector has: an hour later only the builder would say so.
    """
    device = recipe.device
    if device.runtime.startswith("tensorrt"):
        check_candidates(device.runtime, recipe.detector.nms_candidates)
    return open_backend(
        device.runtime,
        precision=device.precision,
        batch=device.batch,
        threads=device.threads,
        timing_cache=table.with_suffix(".timing-cache") if table else None,
    )


def as_certified(recipe: Recipe, table: Path | None, build_jobs: int = 1) -> Measurement:
    """Return how whole detectors are measured to certify a recipe's cost table.

    Args:
        recipe: The recipe; its device is what is measured on.
        table: The cost table, see :func:`recipe_backend`.
        build_jobs: TensorRT-RTX engines that are built at once.
    """
    backend = recipe_backend(recipe, table)
    return Measurement(backend, certification.WHOLE_PROTOCOL, recipe.seed, build_jobs)


@dataclass(frozen=True)
class RecipeTable:
    """The cost table that a recipe's search needs.

    Attributes:
        recipe: Which detectors, on which device.
        num_classes: Classes of its data set.
        path: The SQLite file; made by :meth:`profile` if there is none.
        build_jobs: TensorRT-RTX engines that are built at once.
    """

    recipe: Recipe
    num_classes: int
    path: Path
    build_jobs: int = 1

    @property
    def detectors(self) -> DetectorSpace:
        """Every detector that the recipe's search can choose."""
        return self.recipe.detectors(self.num_classes)

    def plan(self, part: Part = EVERYTHING) -> dict[str, Any]:
        """Return what :meth:`profile` would measure, timing a few units to say how long it takes.

        Args:
            part: Which of the units are measured here.
        """
        selection = self._selection(part)
        backend = recipe_backend(self.recipe)  # without a timing cache: a plan writes no file
        how = Measurement(backend, unit_protocol(backend), build_jobs=self.build_jobs)
        try:
            seconds: float | str = round(estimate_seconds(selection, how))
        except AdaptError as error:  # a selection for another machine
            seconds = f"unknown: {error}"
        units, measured = selection.distinct, len(selection.on_design)
        rows = len(selection.of_shard) + len(selection.to_infer)
        return {
            "distinct_units": units,
            "measured_units": measured,
            "share_measured": round(measured / units, 3),
            "inferred_units": units - measured,
            "boundaries": len(selection.of_shard) - len(part.shard.of(selection.on_design)),
            "already_measured": selection.done,
            "to_measure": len(selection.to_measure),
            "estimated_seconds": seconds,
            "table": str(self.path),
            "table_mb": round(rows * ROW_BYTES / 1e6, 1),
        }

    def _selection(self, part: Part) -> Selection:
        if not self.path.exists():
            return select(self.detectors, part=part)
        with CostTable.open(self.path) as table:
            return select(self.detectors, table, part)

    def profile(self, part: Part = EVERYTHING, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure every unit of the recipe's space that the table lacks.

        Args:
            part: Which of the units are measured here.
            progress: Called with rows done and rows in all, repeated ones on top.

        Raises:
            AdaptError: If the table was measured under other conditions, units could not be
                measured, or took no time; what was measured is kept.
        """
        backend = recipe_backend(self.recipe, self.path)
        how = Measurement(backend, unit_protocol(backend), self.recipe.seed, self.build_jobs)
        summary = profile(self.detectors, self.path, how, part, progress=progress)
        if summary.failed:
            key, reason = next(iter(summary.failed.items()))
            raise AdaptError(
                f"{len(summary.failed)} units could not be measured, the first is '{key}': "
                f"{reason}; {self.path} keeps the others: run the same command again to try these "
                "once more"
            )
        with CostTable.open(self.path) as table:
            check_resolution(table, self.detectors.units())
        return {
            "table": str(summary.table),
            "conditions": str(summary.conditions),
            "device": summary.conditions.device,
            "threads": summary.conditions.threads,
            "units": summary.units,
            "measured_now": summary.measured,
            "inferred_now": summary.inferred,
            "drifted": summary.drifted,
            **_slower(summary.slower, how),
            "seconds": round(summary.seconds, 1),
        }

    def certify(
        self, number: int = certification.DETECTORS, *, progress: Progress = silent
    ) -> dict[str, Any]:
        """Certify the table on this machine, for the space and the detector of the recipe.

        Args:
            number: Detectors to measure.
            progress: Told after every round.

        Raises:
            AdaptError: If the table was measured elsewhere or lacks a unit.
        """
        how = as_certified(self.recipe, self.path, self.build_jobs)
        detectors = self.detectors
        with CostTable.open(self.path, writable=True) as table:
            table.check_resumable(conditions(how.backend, detectors.size))
            certificate = certification.certify(table, detectors, how, number, progress=progress)
        lists = ("predicted_ms", "measured_ms")  # of all detectors: too long to show
        return {k: v for k, v in certificate.to_dict().items() if k not in lists}


def _slower(share: float, how: Measurement) -> dict[str, float]:
    """Return what is worth telling of how much slower this run was than the table's fastest."""
    return {"slower_than_earlier_runs": round(share, 3)} if share > how.protocol.drift else {}
