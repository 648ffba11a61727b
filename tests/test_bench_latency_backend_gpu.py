"""How TensorRT's engines are timed, on a simulated GPU with a clock of its own."""

from collections.abc import Iterator

import pytest
from profile_parts import DETECTOR, NETWORK, SIZE
from simulated_gpu import Simulation, simulated_gpu

from adapt.cost.units import Boundary
from bench.latency.backend import INTERVAL_MS, MOST_RUNS, TensorRTBackend
from bench.latency.subject import Subject, WholeDetector

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
