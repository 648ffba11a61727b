import time

import pytest
import simulated_device
import torch
from simulated_device import Simulated, true_ms

from adapt.cost.units import Boundary, Lateral, unit_key
from adapt.errors import AdaptError
from bench.latency.backend import TensorRTBackend, TorchBackend
from bench.latency.subject import ANCHOR
from bench.latency.timing import Latency, Protocol
from bench.latency.workers import Failure, Measurement, Workers

PROTOCOL = Protocol(rounds=2, round_ms=0.1)
SUBJECTS = {str(c): Boundary(c, 8, 8) for c in (8, 16, 32)}
BAD = unit_key(SUBJECTS["16"])


@pytest.fixture(autouse=True)
def _virtual_time_begins_again():
    simulated_device.reset()


def run(backend, *, subjects=SUBJECTS, **options):
    with Workers(Measurement(backend, PROTOCOL, **options)) as workers:
        return workers.run(subjects)


def assert_measured(found, names):
    for name in names:
        assert isinstance(found[name], Latency), found[name]
        assert found[name].min_ms == pytest.approx(true_ms(SUBJECTS[name]))


@pytest.mark.parametrize("isolated", [False, True])
def test_all_subjects_are_measured(isolated):
    found = run(Simulated(isolated=isolated), build_jobs=2)
    assert set(found) == set(SUBJECTS)
    assert_measured(found, SUBJECTS)


@pytest.mark.parametrize(
    ("stage", "fault", "reason"),
    [
        ("build", "error", "CUDA error: an illegal memory access was encountered"),
        ("build", "crash", "its process died (exit code 11)"),
        ("build", "hang", "took longer than 1 s and was stopped"),
        ("measure", "error", "CUDA error: an illegal memory access was encountered"),
        ("measure", "crash", "its process died (exit code 11)"),
        ("measure", "hang", "took longer than 1 s and was stopped"),
    ],
)
def test_what_goes_wrong_costs_one_subject(stage, fault, reason):
    device = Simulated(isolated=True, faults=((f"{stage} {BAD}", fault),))
    start = time.perf_counter()
    found = run(device, build_seconds=1.0, measure_seconds=0.5)
    assert time.perf_counter() - start < 60
    assert_measured(found, ("8", "32"))
    assert isinstance(found["16"], Failure)
    assert found["16"].reason == reason


def test_after_a_crash_the_next_chunk_is_measured():
    device = Simulated(isolated=True, faults=((f"measure {BAD}", "crash"),))
    with Workers(Measurement(device, PROTOCOL)) as workers:
        workers.run({"16": SUBJECTS["16"]})
        assert_measured(workers.run({"8": SUBJECTS["8"]}), ("8",))


def test_an_anchor_that_cannot_be_built_stops_everything():
    device = Simulated(isolated=True, faults=((f"build {unit_key(ANCHOR)}", "error"),))
    with pytest.raises(AdaptError, match="illegal memory access"):
        run(device)


def test_a_failure_in_this_process_stops_everything():
    device = Simulated(faults=((f"measure {BAD}", "error"),))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(device)


def test_what_others_are_measured_beside_is_built_once():
    class Counting(Simulated):
        def build(self, subject):
            built.append(subject)
            return super().build(subject)

    built = []
    with Workers(Measurement(Counting(), PROTOCOL)) as workers:
        workers.kept = SUBJECTS["16"]
        for name in ("8", "32"):
            assert_measured(workers.run({name: SUBJECTS[name], "16": SUBJECTS["16"]}), [name, "16"])
        assert_measured(workers.run({"16": SUBJECTS["16"]}), ["16"])
    assert [built.count(SUBJECTS[name]) for name in ("8", "16", "32")] == [1, 1, 1]


@pytest.mark.parametrize("isolated", [False, True])
def test_the_best_of_the_anchor_outlives_a_chunk(isolated):
    how = Measurement(Simulated(isolated=isolated), PROTOCOL)
    with Workers(how, anchor_ms=1e9) as workers:
        workers.run({"8": Lateral(8, 8, 8, 8)})
        best = workers.anchor_ms
    assert best == pytest.approx(simulated_device._measured_ms(ANCHOR))


def test_progress_reaches_the_total_in_both_stages():
    seen = []
    with Workers(Measurement(Simulated(), PROTOCOL)) as workers:
        workers.run(SUBJECTS, progress=lambda *step: seen.append(step[:2]))
    assert seen[0] == (1, 9)
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(("isolated", "drifted"), [(False, 2), (True, 0)])
def test_an_anchor_that_was_faster_in_an_earlier_run_tells_of_drift_on_a_processor_only(
    isolated, drifted
):
    with Workers(Measurement(Simulated(isolated=isolated), PROTOCOL), anchor_ms=1e-6) as workers:
        assert workers.run({"8": SUBJECTS["8"]})["8"].drifted == drifted


def test_engines_of_tensorrt_are_not_built_at_once():
    with pytest.raises(AdaptError, match=r"--build-jobs 4 .* leave it at 1, only tensorrt-rtx"):
        Measurement(TensorRTBackend("tensorrt"), PROTOCOL, build_jobs=4)
    Measurement(TensorRTBackend("tensorrt-rtx"), PROTOCOL, build_jobs=4)


def test_the_threads_of_eager_pytorch_are_those_of_its_measurement_only():
    before = torch.get_num_threads()
    how = Measurement(TorchBackend(threads=before + 1), Protocol(rounds=1, round_ms=0.1))
    with Workers(how) as workers:
        workers.run({"8": SUBJECTS["8"]})
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
