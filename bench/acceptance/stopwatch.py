"""Which latency do derived detectors have on the machine of their cost table?"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from adapt.architecture import Architecture
from adapt.cost.table import CostTable
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs import certify
from bench.costs.recipe_table import recipe_backend
from bench.latency.backend import Backend, conditions
from bench.latency.subject import WholeDetector
from bench.latency.timing import Latency
from bench.latency.workers import Failure, Measurement, Workers
from search.derive.finished import FinishedSearch
from search.recipe.recipe import Recipe

REPEATS = 3  # of a measurement that met a slow machine


def as_certified(recipe: Recipe, costs: Path | None) -> Measurement:
    """Return how the certificate of a recipe's cost table was measured.

    Args:
        recipe: The recipe; its device is what is measured on.
        costs: The cost table; TensorRT builds share their tactic timings in a file beside it.
    """
    return Measurement(recipe_backend(recipe, costs), certify.WHOLE_PROTOCOL, recipe.seed)


class Stopwatch:
    """Measures whole detectors as a table's certificate does; a context manager.

    Args:
        search: A finished search with its cost table.
        how: What the table was measured on, and how much is measured of each detector.

    Attributes:
        conditions: Under which conditions it measures.

    Raises:
        AdaptError: If the table was measured under other conditions than this machine's.
    """

    def __init__(self, search: FinishedSearch, how: Measurement) -> None:
        assert search.table is not None
        self._search = search
        self._size = search.recipe.input.fixed()
        self.conditions = search.table.conditions
        check_here(search.table, how.backend, self._size)
        self._workers = Workers(how, anchor_ms=search.table.anchor_ms)

    def __enter__(self) -> Self:
        self._workers.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self._workers.__exit__(*how)

    def one(self, network: Architecture) -> tuple[float, bool]:
        """Return the latency of a network in ms, and whether the machine was slow each time."""
        least = float("inf")
        for _ in range(REPEATS):
            (latency,) = self.many([network])
            least = min(least, latency.min_ms)
            if not latency.mostly_drifted:
                break
        return least, latency.mostly_drifted

    def settled(
        self, networks: Sequence[Architecture], *, progress: Progress = silent
    ) -> list[float]:
        """Return latencies in ms; of those that met a slow machine, measured once more alone."""
        found = self.many(networks, progress=progress)
        return [
            min(latency.min_ms, self.one(network)[0]) if latency.mostly_drifted else latency.min_ms
            for network, latency in zip(networks, found, strict=True)
        ]

    def many(
        self, networks: Sequence[Architecture], *, progress: Progress = silent
    ) -> list[Latency]:
        """Return the latencies of networks that are measured in turns.

        Raises:
            AdaptError: If one cannot be measured.
        """
        config = self._search.recipe.detector_config(len(self._search.class_names))
        subjects = {
            str(i): WholeDetector(network, config, self._size) for i, network in enumerate(networks)
        }
        found = self._workers.run(subjects, progress=progress)
        return [_latency(found[name]) for name in subjects]


def check_here(table: CostTable, backend: Backend, size: InputSize) -> None:
    """Check that this machine measures under a table's conditions.

    Raises:
        AdaptError: With the first condition that differs.
    """
    here = asdict(conditions(backend, size))
    for name, value in asdict(table.conditions).items():
        if here[name] != value:
            raise AdaptError(
                f"{table.path} was measured with {name} = {value}, this machine has {name} = "
                f"{here[name]}; run this where the table was measured, or measure a table here "
                "with `adapt profile`"
            )


def _latency(found: Latency | Failure) -> Latency:
    if isinstance(found, Failure):
        raise AdaptError(f"a derived detector could not be measured: {found.reason}; free memory")
    return found
