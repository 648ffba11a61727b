"""How TensorRT's engines are timed, on a simulated GPU with a clock of its own."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from profile_parts import DETECTOR, NETWORK, SIZE
from simulated_gpu import Simulation, simulated_gpu

from adapt.cost.units import Boundary
from bench.costs.profiler import GPU_PROTOCOL
from bench.latency.backend import INTERVAL_MS, MOST_RUNS, TensorRTBackend
from bench.latency.subject import Subject, WholeDetector
from bench.latency.timing import Latency
from bench.latency.workers import Measurement, Workers

BACKEND = TensorRTBackend("tensorrt", "fp16")
SHORT = Boundary(8, 8, 8)


@pytest.fixture(scope="module")
def gpu() -> Iterator[Simulation]:
    with simulated_gpu() as gpu:
        yield gpu


@pytest.mark.parametrize(
    "subject", [SHORT, WholeDetector(NETWORK, DETECTOR, SIZE)], ids=["short", "long"]
)
def test_a_sample_is_one_launch_of_as_many_runs_as_take_a_millisecond(
    gpu: Simulation, subject: Subject
) -> None:
    timer = BACKEND.load(BACKEND.build(subject))
    launches, before_ms = gpu.cuda.calls.count("cuda.CUDAGraph.replay"), gpu.cuda.now_ms
    sample = timer()
    assert gpu.cuda.calls.count("cuda.CUDAGraph.replay") == launches + 1
    assert sample.elapsed_ms == pytest.approx(gpu.cuda.now_ms - before_ms)
    runs = sample.elapsed_ms / sample.latency_ms
    assert runs == pytest.approx(round(runs))
    assert sample.elapsed_ms >= INTERVAL_MS or round(runs) == MOST_RUNS
    assert sample.elapsed_ms < 2 * INTERVAL_MS or round(runs) == 1


def test_what_cannot_be_captured_is_run_as_often() -> None:
    with simulated_gpu(capturable=False):
        plain = BACKEND.load(BACKEND.build(SHORT))()
    with simulated_gpu():
        captured = BACKEND.load(BACKEND.build(SHORT))()
    assert plain == pytest.approx(captured)


def test_runs_that_were_counted_at_an_idle_clock_become_more(gpu: Simulation) -> None:
    gpu.cuda.slowdown = 7.0
    timer = BACKEND.load(BACKEND.build(SHORT))
    idle = timer()
    gpu.cuda.slowdown = 1.0
    working = timer()
    assert working.elapsed_ms >= INTERVAL_MS
    assert idle.latency_ms == pytest.approx(7 * working.latency_ms)


def test_what_cannot_be_captured_spoils_nothing_that_is_loaded_after_it() -> None:
    with simulated_gpu(capturable=False) as gpu:
        built = BACKEND.build(SHORT)
        first, second = BACKEND.load(built), BACKEND.load(built)
        assert gpu.cuda.generator_lost
        assert first() == pytest.approx(second())


def test_chunks_are_measured_within_the_time_that_is_meant_for_them(gpu: Simulation) -> None:
    units = {str(c): Boundary(c, 8, 8) for c in range(8, 72, 8)}
    here = replace(BACKEND, isolated=False)  # the clock is this process's
    with Workers(Measurement(here, GPU_PROTOCOL)) as workers:
        before_ms = gpu.cuda.now_ms
        found = workers.run(units)
    meant_ms = GPU_PROTOCOL.warm_up_ms + GPU_PROTOCOL.rounds * GPU_PROTOCOL.round_ms * len(units)
    assert meant_ms < gpu.cuda.now_ms - before_ms < 2 * meant_ms
    for latency in found.values():
        assert isinstance(latency, Latency)
        assert 40 <= latency.samples <= 50
