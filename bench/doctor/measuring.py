"""Are timings on this machine steady, and does a small cost table predict whole detectors?"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.resolution import TOLERATED, free_units
from adapt.cost.table import CostTable
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.machine import load_per_core
from adapt.runtime import Precision
from adapt.space import BlockSpace, SearchSpace
from bench.costs.certify import certify
from bench.costs.profiler import profile, unit_protocol
from bench.doctor.contained import Reading
from bench.doctor.cuda import CudaStack
from bench.doctor.tiny import Files, images
from bench.latency.backend import INTERVAL_MS, TensorRTBackend, open_backend
from bench.latency.nvml import nvml
from bench.latency.provenance import gpu_state
from bench.latency.subject import ANCHOR
from bench.latency.timing import Protocol, measure
from bench.latency.workers import Measurement
from export.engine.execution import EngineExecution
from export.run.inference import unit
from export.run.runner import open_runner

STATES = 100
STATE_MS = 1.0  # a reading of clock and temperature stands between two samples
# Of a processor that others may use, where the fastest call counts, and of a GPU.
SPREAD = {"cpu": None, "cuda": 0.05}
REPEATED = {"cpu": 0.15, "cuda": 0.02}
RUNS = {"cpu": (2, 10), "cuda": (10, 50)}
LONGER = 5  # of launches of the anchor, against those that measure a cost table
MAPE = {"cpu": 0.15, "cuda": 0.05}
TAU = {"cpu": 0.8, "cuda": 0.9}
DETECTORS = 10
# Few units, and detectors that differ by more than the noise.
COSTS = DetectorSpace(
    SearchSpace(
        "tiny",
        "mobilenet_v2",
        16,
        16,
        (2, 3, 4),
        tuple(BlockSpace(2, 2, (3,), (3, 6), (16 * n, 48 * n)) for n in (1, 1, 2, 2)),
    ),
    DetectorConfig(num_classes=3, fpn_width=32, head_depth=1, candidates=100),
    InputSize(192, 256),
)


def check_libraries() -> list[Reading]:
    """Compare libraries with the driver, and see that several processes may use the GPU.

    A table is built in one process and measured in another, beside that of the command.
    """
    too_new = len(CudaStack.here().too_new)
    mode = nvml().read("nvmlDeviceGetComputeMode", nvml().board)
    alone = [] if mode is None else [Reading("compute mode (0: for several processes)", mode, 0)]
    return [Reading("libraries that are too new for the driver", too_new, 0), *alone]


def check_sensors() -> list[Reading]:
    """Time readings of the GPU's clock, temperature and throttling."""
    gpu_state()
    start = time.perf_counter()
    states = [gpu_state() for _ in range(STATES)]
    each_ms = (time.perf_counter() - start) / STATES * 1000
    unknown = sum(state.clock_mhz is None for state in states)
    return [Reading("ms per reading", each_ms, STATE_MS), Reading("without a clock", unknown, 0)]


def check_timing(files: Files, runtime: str, precision: Precision, kind: str) -> list[Reading]:
    """Time the anchor for a second, and few and many runs of the detector."""
    backend = open_backend(runtime, precision=precision)
    timer = backend.load(backend.build(ANCHOR))
    latency = measure({"anchor": timer}, Protocol(rounds=5, round_ms=200.0))["anchor"]
    of_anchor = []
    if isinstance(backend, TensorRTBackend):
        apart = launches_apart(backend)
        of_anchor = [
            Reading(f"the anchor in launches {LONGER} times as long", apart, REPEATED[kind])
        ]
    few, many = (
        _run_ms(files.artifact(runtime, precision, "detections"), runtime, runs)
        for runs in RUNS[kind]
    )
    return [
        Reading("anchor ms", latency.p50_ms),
        Reading("p90 / p10 - 1", latency.spread, SPREAD[kind]),
        Reading(
            "{} and {} runs differ by".format(*RUNS[kind]), abs(few / many - 1), REPEATED[kind]
        ),
        *of_anchor,
        Reading("load per core", load_per_core()),
    ]


def launches_apart(backend: TensorRTBackend) -> float:
    """Return by which share the anchor's latency differs if many more runs are one launch.

    What starting a launch takes would be in the latency of few runs, and hide what differs between
    small operations.
    """
    built = backend.build(ANCHOR)
    usual, longer = (backend.load(built, ms) for ms in (INTERVAL_MS, LONGER * INTERVAL_MS))
    least_ms = [min(timer().latency_ms for _ in range(15)) for timer in (usual, longer)]
    return abs(least_ms[0] / least_ms[1] - 1)


def _run_ms(artifact: Path, runtime: str, runs: int) -> float:
    """Return how long one of so many runs of a detector takes; an engine's are one launch."""
    if artifact.suffix != ".plan":
        with open_runner(runtime, artifact) as runner:
            return _fastest_ms(runner.bind(images(1)), runs)
    engine = EngineExecution.open(artifact)
    engine.feed({"images": unit(images(1))})
    launch = engine.replay(runs)

    def call() -> None:
        launch()
        torch.cuda.synchronize()

    return _fastest_ms(call, 1) / runs


def _fastest_ms(call: Callable[[], object], runs: int, tries: int = 15) -> float:
    """Return the wall time of a call, the least of several means over so many runs."""
    call()
    means = []
    for _ in range(tries):
        start = time.perf_counter()
        for _ in range(runs):
            call()
        means.append((time.perf_counter() - start) / runs * 1000)
    return min(means)


def check_costs(files: Files, runtime: str, precision: Precision, kind: str) -> list[Reading]:
    """Measure a small cost table, and how well it predicts random detectors."""
    backend = open_backend(runtime, precision=precision, timing_cache=files.timing_cache)
    path = files.folder / f"{runtime}-{precision}.sqlite"
    summary = profile(COSTS, path, Measurement(backend, unit_protocol(backend)))
    whole = Protocol(rounds=6, round_ms=40.0)
    with CostTable.open(path, writable=True) as table:
        units = COSTS.units()
        free, known = free_units(table, units)
        certificate = certify(table, COSTS, Measurement(backend, whole), DETECTORS)
    return [
        Reading("units", len(units)),
        Reading("failed", len(summary.failed), 0),
        Reading("that seem free", len(free), max(1, TOLERATED * known)),
        Reading("MAPE", certificate.mape, MAPE[kind]),
        Reading("tau", certificate.kendall_tau, TAU[kind], at_least=True),
    ]
