"""What does each unit cost on a device? (measured latencies in an SQLite file)"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from adapt.architecture import Architecture
from adapt.artifacts import atomic_path, check_header, content_hash, header, parsing, typed
from adapt.cost.units import Measurable, Unit, boundaries, detector_units, unit_key
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.errors import FORBID_UNKNOWN, AdaptError

KIND = "cost-table"
Stored = dict[str, Any] | None
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fastest = Annotated[float, Field(gt=0)]  # infinite if the machine was slow all the time
AnyUnit = TypeVar("AnyUnit", bound=Measurable)
Note = Literal["certificate", "interpolation", "anchor_ms", "runs"]  # kept beside the rows
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cost (
    unit TEXT PRIMARY KEY,
    min_ms REAL NOT NULL, p10_ms REAL NOT NULL, p50_ms REAL NOT NULL, p90_ms REAL NOT NULL,
    samples INTEGER NOT NULL, rounds INTEGER NOT NULL, drifted INTEGER NOT NULL,
    clock_mhz REAL, temperature_c REAL, throttled TEXT NOT NULL, time REAL NOT NULL
) WITHOUT ROWID;
"""
_FIELDS = (
    *("min_ms", "p10_ms", "p50_ms", "p90_ms", "samples", "rounds", "drifted"),
    *("clock_mhz", "temperature_c", "throttled"),
)
_COLUMNS = ", ".join(_FIELDS)
_UPSERT = (
    f"INSERT OR REPLACE INTO cost (unit, {_COLUMNS}, time) "
    f"VALUES ({', '.join('?' * (len(_FIELDS) + 2))})"
)


@dataclass(frozen=True)
class Conditions:
    """Under which conditions every row of a table was measured.

    Attributes:
        runtime: Runtime by its name on the command line, such as ``ort-cpu``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        batch: Images per call.
        threads: Threads the runtime computes with; 0 where it has no such setting.
        device: Model name of the processor or GPU.
        height: Height of the detector's input in pixels.
        width: Width of the detector's input in pixels.
        runtime_version: Version of the runtime's library.
        protocol: Version of the timing protocol.
        cores: Processor cores the measurement could use.
        governor: Frequency governor of the processor; empty where there is none.
        driver: Version of the GPU's driver; empty for a processor.
        cuda: CUDA version that the driver supports; empty for a processor.
        power_limit_w: Power limit of the GPU in watts; 0 for a processor.
        tail: How the measured detector's graph ends, see :func:`adapt.runtime.usual_tail`.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    runtime: str
    precision: str
    batch: int
    threads: int
    device: str
    height: int
    width: int
    runtime_version: str
    protocol: int
    cores: int = 0
    governor: str = ""
    driver: str = ""
    cuda: str = ""
    power_limit_w: int = 0
    tail: str = "tensor-nms"

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} batch {self.batch}"

    def device_options(self) -> dict[str, Any]:
        """Return the fields of a recipe's device that these conditions decide."""
        options = {"runtime": self.runtime, "precision": self.precision, "batch": self.batch}
        return {**options, "threads": self.threads or None}  # 0: a GPU does the work


@dataclass(frozen=True)
class UnitCost:
    """A row: latency of one unit between two light convolutions, over ``samples`` calls.

    Attributes:
        min_ms: Minimum in milliseconds.
        p10_ms: 10th percentile.
        p50_ms: Median.
        p90_ms: 90th percentile.
        samples: Timed calls; 0 if the row was interpolated from others.
        rounds: Rounds these calls are spread over.
        drifted: Rounds in which the machine was slower than at its best.
        clock_mhz: Clock of the device, where it can be read.
        temperature_c: Its temperature, where it can be read.
        throttled: Why the device lowered its clock; empty if it did not, or does not say.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    min_ms: float
    p10_ms: float
    p50_ms: float
    p90_ms: float
    samples: int
    rounds: int
    drifted: int = 0
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: str = ""

    @property
    def interpolated(self) -> bool:
        """Whether the row was computed from its neighbours instead of measured."""
        return self.samples == 0


class CostTable:
    """Measured latencies of units, by :func:`adapt.cost.units.unit_key`.

    A context manager; made by :meth:`create` and :meth:`open`. Rows are on the disk when
    :meth:`add` returns, so a killed measurement loses only the one under way.

    Attributes:
        path: The SQLite file.
        conditions: Under which conditions it was measured.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, conditions: Conditions) -> None:
        self.path = path
        self.conditions = conditions
        self._connection = connection

    @classmethod
    def create(cls, path: Path, conditions: Conditions) -> Self:
        """Write an empty table and open it for writing.

        Raises:
            AdaptError: If ``path`` exists or cannot be written.
        """
        if path.exists():
            raise AdaptError(f"cost table {path} already exists; choose another path with --out")
        content = header(KIND, conditions=asdict(conditions))
        with atomic_path(path) as temporary, _connect(temporary) as connection:
            connection.executescript(_SCHEMA)
            rows = [(key, json.dumps(value)) for key, value in content.items()]
            with connection:
                connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        return cls.open(path, writable=True)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Self:
        """Open a table, for reading only unless ``writable``.

        Raises:
            AdaptError: If the file is missing, damaged, or no cost table this version reads.
        """
        if not path.is_file():
            raise AdaptError(f"cost table {path} does not exist; `adapt profile` measures one")
        # Not mode=ro: the next reader has to roll back what a killed writer left half done.
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)
        try:
            with _readable(path):
                conditions = _read_conditions(connection, path)
                connection.execute(f"PRAGMA query_only = {not writable:d}")
        except AdaptError:
            connection.close()
            raise
        return cls(path, connection, conditions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add(self, costs: Mapping[Measurable, UnitCost]) -> None:
        """Store measured units in one transaction; a unit measured before is replaced."""
        self.add_rows({unit_key(unit): cost for unit, cost in costs.items()})

    def add_rows(self, costs: Mapping[str, UnitCost]) -> None:
        """Store measured units by their key in one transaction."""
        now = time.time()
        rows = [(key, *astuple(cost), now) for key, cost in costs.items()]
        with _readable(self.path), self._connection:
            self._connection.executemany(_UPSERT, rows)

    def store(self, note: Note, content: Any) -> None:
        """Store JSON content beside the rows; a certificate is valid until a row changes."""
        if note == "certificate":
            content = {**content, "rows": self.hash}
        row = note, json.dumps(content)
        with _readable(self.path), self._connection:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """How well the table predicts whole detectors; None if not measured with these rows."""
        with self._parsing("certificate"):
            certificate: dict[str, Any] | None = typed(Stored, self._stored("certificate"))
            if certificate is None or certificate.pop("rows") != self.hash:
                return None
            line = {name: typed(Finite, certificate[name]) for name in ("scale", "offset_ms")}
            predicted = {
                name: typed(list[Finite], certificate[name])
                for name in ("range_ms", "predicted_ms")
                if certificate.get(name)
            }
        return certificate | line | predicted

    @property
    def correction(self) -> tuple[float, float]:
        """Factor and offset in ms that turn a sum of rows into a detector's latency.

        They are the certificate's; without one they change nothing.

        Raises:
            AdaptError: If the certificate would turn the order of the costs round.
        """
        certificate = self.certificate
        if certificate is None:
            return 1.0, 0.0
        if certificate["scale"] <= 0:  # of an older adapt, fitted to nothing but noise
            raise AdaptError(
                f"the certificate of {self.path} multiplies costs by {certificate['scale']:.3g}, "
                "which makes the dearest network the cheapest; measure it again with `adapt costs "
                f"certify RECIPE {self.path}`"
            )
        return certificate["scale"], certificate["offset_ms"]

    def corrected(self, predicted_ms: float) -> float:
        """Return a detector's predicted latency with the certificate's affine correction.

        Raises:
            AdaptError: If the table has no certificate, or one of a falling line.
        """
        if self.certificate is None:
            raise AdaptError(f"{self.path} has no certificate; `adapt costs certify` measures one")
        scale, offset_ms = self.correction
        return scale * predicted_ms + offset_ms

    @property
    def certified_ms(self) -> tuple[float, float] | None:
        """Corrected latencies of the cheapest and the dearest detector that was certified."""
        certificate = self.certificate or {}
        # Certificates of 0.1.0 state no range; their detectors were all drawn by chance.
        predicted = certificate.get("range_ms") or certificate.get("predicted_ms")
        if not predicted:
            return None
        return self.corrected(min(predicted)), self.corrected(max(predicted))

    @property
    def interpolation(self) -> dict[str, Any] | None:
        """How well interpolation predicts measured rows; None if no row is interpolated."""
        with self._parsing("interpolation"):
            errors: dict[str, Any] | None = typed(Stored, self._stored("interpolation"))
        return errors

    @property
    def anchor_ms(self) -> float:
        """Fastest latency of the anchor operation in any run; infinite before the first."""
        with self._parsing("anchor"):
            fastest: float | None = typed(Fastest | None, self._stored("anchor_ms"))
        return float("inf") if fastest is None else fastest

    @property
    def runs(self) -> list[dict[str, Any]]:
        """When, on which machine and under which load rows were measured."""
        with self._parsing("list of runs"):
            return typed(list[dict[str, Any]], self._stored("runs") or [])

    def _stored(self, note: Note) -> Any:
        with _readable(self.path):
            query = "SELECT value FROM meta WHERE key = ?"
            row = self._connection.execute(query, (note,)).fetchone()
        return json.loads(row[0]) if row else None

    def _parsing(self, what: str) -> AbstractContextManager[None]:
        return parsing(f"the {what} of cost table", self.path, "measure it again")

    def rows(self) -> dict[str, UnitCost]:
        """Return all rows by :func:`adapt.cost.units.unit_key`.

        Raises:
            AdaptError: If one holds something else than numbers.
        """
        return dict(map(self._row, self._rows()))

    def find(self, unit: Measurable) -> UnitCost | None:
        """Return the row of a unit, or None if it was not measured.

        Raises:
            AdaptError: If it holds something else than numbers.
        """
        rows = self._rows("WHERE unit = ?", unit_key(unit))
        return self._row(rows[0])[1] if rows else None

    def _row(self, cells: tuple[Any, ...]) -> tuple[str, UnitCost]:
        with self._parsing(f"row {cells[0]!r}"):
            unit, cost = cells[0], typed(UnitCost, dict(zip(_FIELDS, cells[1:], strict=True)))
            if not isinstance(unit, str) or cost.min_ms < 0 or cost.samples < 0:
                raise ValueError(f"it has {cost.samples} samples of {cost.min_ms} ms")
        return unit, cost

    def lookup(self, unit: Unit) -> float:
        """Return the latency in milliseconds that a unit adds to a detector.

        That is the minimum of its samples, without the light convolutions around it. Half of each
        :class:`~adapt.cost.units.Boundary` is subtracted: two units share one, so that a sum over a
        network subtracts every boundary once.

        Raises:
            AdaptError: If the unit or one of its boundaries was not measured.
        """
        ends = sum(self._minimum(boundary) for boundary in boundaries(unit))
        return max(0.0, self._minimum(unit) - ends / 2)

    def _minimum(self, unit: Measurable) -> float:
        cost = self.find(unit)
        if cost is None:
            raise AdaptError(
                f"cost table {self.path} has no row for '{unit_key(unit)}'; profiling was stopped, "
                "or the table is of another space, detector or input size: add what is missing "
                f"with `adapt profile RECIPE --out {self.path}`"
            )
        return cost.min_ms

    def missing(self, units: Iterable[AnyUnit], *, inferred_too: bool = False) -> list[AnyUnit]:
        """Return the units that have no row, in order.

        Args:
            units: Units to look for.
            inferred_too: Whether units whose row was interpolated are missing as well.
        """
        rows = self.rows().items()
        measured = {key for key, cost in rows if not (inferred_too and cost.interpolated)}
        return [unit for unit in units if unit_key(unit) not in measured]

    def __len__(self) -> int:
        return len(self._rows())

    def check(
        self,
        *,
        runtime: str,
        precision: str,
        batch: int,
        size: InputSize,
        device: str | None = None,
    ) -> None:
        """Check that the table was measured under the conditions a search asks for.

        Args:
            runtime: Runtime the search is for.
            precision: Precision the search is for.
            batch: Images per call.
            size: Size of the detector's input.
            device: Model name of the processor or GPU the search is for; None accepts any.

        Raises:
            AdaptError: With both conditions and the command that measures the right ones.
        """
        table = self.conditions
        measured = [str(table), f" at {table.height}x{table.width}", f" ({table.device})"]
        needed = [f"{runtime} {precision} batch {batch}", f" at {size.height}x{size.width}"]
        needed.append(f" ({device or table.device})")
        differing = [part for part in range(3) if measured[part] != needed[part]]
        if differing:
            shown = differing[-1] + 1
            raise AdaptError(
                f"{self.path} was measured on {''.join(measured[:shown])}; this search asks for "
                f"{''.join(needed[:shown])}: measure it there with `adapt profile RECIPE`, or "
                "correct [device] and [input] of the recipe"
            )

    def check_resumable(self, conditions: Conditions) -> None:
        """Check that rows measured under ``conditions`` may be added.

        Raises:
            AdaptError: With the first condition that differs.
        """
        current = asdict(conditions)
        for name, value in asdict(self.conditions).items():
            if current[name] != value:
                raise AdaptError(
                    f"{self.path} was measured with {name} = {value}, this run has {name} = "
                    f"{current[name]}; choose another file with --out"
                )

    @property
    def hash(self) -> str:
        """16 hex digits that identify conditions and rows, whatever the layout of the file."""
        rows = [list(row) for row in self._rows("ORDER BY unit")]
        return content_hash({"conditions": asdict(self.conditions), "rows": rows})

    def _rows(self, clause: str = "", *parameters: str) -> list[tuple[Any, ...]]:
        query = f"SELECT unit, {_COLUMNS} FROM cost {clause}"
        with _readable(self.path):
            return self._connection.execute(query, parameters).fetchall()


def predict_latency(
    table: CostTable, architecture: Architecture, detector: DetectorConfig, size: InputSize
) -> float:
    """Return the latency of a detector in milliseconds: the sum of its units' latencies.

    Raises:
        AdaptError: If the table lacks one of the units.
    """
    return sum(table.lookup(unit) for unit in detector_units(architecture, detector, size))


@contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise AdaptError(
            f"cost table {path} cannot be used ({error}); check its permissions, the free space, "
            "and that no other `adapt profile` writes it"
        ) from error
    except sqlite3.DatabaseError as error:
        raise AdaptError(
            f"{path} is not a readable cost table ({error}); pass the file that `adapt profile` "
            "wrote, or measure it again"
        ) from error


def _read_conditions(connection: sqlite3.Connection, path: Path) -> Conditions:
    (report,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if report != "ok":
        raise sqlite3.DatabaseError(" ".join(report.split()))
    content = check_header(_read_meta(connection), KIND, path)
    with parsing("cost table", path, "measure it again with `adapt profile`"):
        return typed(Conditions, content["conditions"])


def _read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if not {"meta", "cost"} <= tables:
        return {}
    try:
        return {k: json.loads(v) for k, v in connection.execute("SELECT key, value FROM meta")}
    except (TypeError, ValueError, RecursionError) as error:
        raise sqlite3.DatabaseError(f"its description is not JSON: {error}") from error
