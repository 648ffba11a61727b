"""How are derived detectors timed under the conditions of their cost table, and no others?"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Self

from adapt.architecture import Architecture
from adapt.cost.table import CostTable
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.latency.backend import Backend, conditions
from bench.latency.subject import WholeDetector
from bench.latency.timing import Latency
from bench.latency.workers import Measurement, Workers
from search.derive.finished import FinishedSearch

REPEATS = 3  # most measurements of a network on a machine that is slow


class Stopwatch:
    """Times derived detectors; a context manager.

    Args:
        search: A finished search with its cost table.
        how: The backend of the table, and how much is measured of each detector.

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
        check_conditions(search.table, how.backend, self._size)
        self._workers = Workers(how, anchor_ms=search.table.anchor_ms)

    def __enter__(self) -> Self:
        self._workers.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self._workers.__exit__(*how)

    def measure_one(self, network: Architecture) -> tuple[float, bool]:
        """Return the latency of a network in ms, and whether the machine was slow each time."""
        return repeated(lambda: self.measure_all([network])[0])

    def settled(
        self, networks: Sequence[Architecture], *, progress: Progress = silent
    ) -> list[float]:
        """Return latencies in ms; networks that met a slow machine are measured again, alone."""
        measured = self.measure_all(networks, progress=progress)
        latencies_ms = []
        for network, latency in zip(networks, measured, strict=True):
            latency_ms = latency.min_ms
            if latency.mostly_drifted:
                latency_ms = min(latency_ms, self.measure_one(network)[0])
            latencies_ms.append(latency_ms)
        return latencies_ms

    def measure_all(
        self, networks: Sequence[Architecture], *, progress: Progress = silent
    ) -> list[Latency]:
        """Return the latencies of networks, which are measured in interleaved rounds.

        Raises:
            AdaptError: If one cannot be measured.
        """
        config = self._search.recipe.detector_config(len(self._search.class_names))
        detectors = [WholeDetector(network, config, self._size) for network in networks]
        return self._workers.latencies(
            detectors, name="a derived detector", fix="free memory", progress=progress
        )


def repeated(measure: Callable[[], Latency]) -> tuple[float, bool]:
    """Measure until the machine is not slow, :data:`REPEATS` times at most.

    Returns:
        The minimum in ms, and whether the machine was slow each time.
    """
    least = float("inf")
    for _ in range(REPEATS):
        latency = measure()
        least = min(least, latency.min_ms)
        if not latency.mostly_drifted:
            break
    return least, latency.mostly_drifted


def check_conditions(table: CostTable, backend: Backend, size: InputSize) -> None:
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
