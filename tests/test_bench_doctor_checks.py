"""Do the checks of a verification see what is wrong? (on this processor, and a simulated GPU)"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pynvml
import pytest
from core_parts import once
from simulated_gpu import Simulation, simulated_gpu

from bench.doctor import checks
from bench.doctor.checks import (
    check_batches,
    check_build,
    check_detector,
    check_export,
    check_graph,
    check_kernels,
    check_outputs,
    convolutions,
    heads_error,
)
from bench.doctor.contained import Reading
from bench.doctor.measuring import (
    REPEATED,
    check_libraries,
    check_sensors,
    check_timing,
    launches_apart,
)
from bench.doctor.tiny import Files, expected_heads, images
from bench.doctor.training import check_fp32, check_training
from bench.latency.backend import TensorRTBackend
from export.engine.execution import EngineExecution
from export.run.pair import deployed_header

LOGITS = np.array([[[1.0], [2.0], [3.0], [4.0]]])


@pytest.fixture(scope="module")
def files(made: Path) -> Files:
    """The tiny detector, and its graph in fp16; other tests use it too."""
    return written(made)


def written(made: Path) -> Files:
    def write(folder: Path) -> None:
        folder.mkdir()
        assert all(reading.passed for reading in check_detector(Files(folder)))
        check_export(Files(folder), "ort-cpu", "fp16")

    return Files(once(made / "doctor", write))


@pytest.fixture(scope="module")
def gpu(files: Files) -> Iterator[Simulation]:
    with simulated_gpu("10.16.0.72") as gpu:
        assert passed(check_build(files, "tensorrt", "fp16"))
        yield gpu


def passed(readings: list[Reading]) -> bool:
    assert readings
    return all(reading.passed for reading in readings)


@pytest.mark.parametrize("check", [check_outputs, check_batches, check_kernels])
def test_onnx_runtime_passes_here(files: Files, check: object) -> None:
    assert passed(check(files, "ort-cpu", "fp16"))  # type: ignore[operator]


@pytest.mark.parametrize("check", [check_outputs, check_batches, check_graph])
def test_an_engine_passes_on_a_simulated_gpu(files: Files, gpu: Simulation, check: object) -> None:
    assert passed(check(files, "tensorrt", "fp16"))  # type: ignore[operator]


def test_timings_of_a_simulated_gpu_are_steady_and_its_sensors_fast(
    files: Files, gpu: Simulation
) -> None:
    assert passed(check_timing(files, "tensorrt", "fp16", "cuda"))
    assert passed(check_sensors())


def test_a_gpu_for_one_process_alone_does_not_pass(
    gpu: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(check_libraries()) == 2
    assert passed(check_libraries())
    exclusive = pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeMode", lambda _: exclusive)
    assert [reading.passed for reading in check_libraries()] == [True, False]


def test_launches_that_take_as_long_as_their_runs_do_not_pass(
    gpu: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRTBackend("tensorrt", "fp16")
    assert launches_apart(backend) < 1e-6
    monkeypatch.setattr(gpu.cuda, "launch_ms", 0.1)
    assert launches_apart(backend) > REPEATED["cuda"]


def test_int8_is_verified_in_the_file_that_is_deployed(tmp_path: Path) -> None:
    files = Files(tmp_path / "files")
    files.folder.mkdir()
    check_detector(files)
    with simulated_gpu("11.4.0.106"):
        check_export(files, "tensorrt", "int8")
        assert passed(check_build(files, "tensorrt", "int8"))
        assert passed(check_outputs(files, "tensorrt", "int8"))
        header = deployed_header(files.artifact("tensorrt", "int8", "detections"))
    assert (header["precision"], header["rest"]) == ("int8", "fp16")


def test_a_graph_that_replays_nothing_differs(
    files: Files, gpu: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(self: EngineExecution) -> object:
        self.captured = True
        return lambda: None

    monkeypatch.setattr(EngineExecution, "capture", nothing)
    captured, differing = check_graph(files, "tensorrt", "fp16")
    assert captured.passed
    assert differing.value > 0


def test_an_engine_that_is_not_captured_does_not_pass(files: Files, tmp_path: Path) -> None:
    copied = Files(Path(shutil.copytree(files.folder, tmp_path / "files")))
    copied.timing_cache.unlink(missing_ok=True)  # of another release
    with simulated_gpu("11.4.0.106", capturable=False):
        check_build(copied, "tensorrt", "fp16")
        captured, differing = check_graph(copied, "tensorrt", "fp16")
    assert not captured.passed
    assert differing.passed


def test_other_outputs_than_pytorchs_do_not_pass(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_other_images = expected_heads(files, images(seed=9))
    monkeypatch.setattr(checks, "expected_heads", lambda *_: of_other_images)
    heads, _ = check_outputs(files, "ort-cpu", "fp16")
    assert not heads.passed


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (LOGITS, 0.0),
        (LOGITS + 0.1, 0.1 / np.std([1, 2, 3, 4])),
        (LOGITS * np.nan, float("inf")),
    ],
)
def test_heads_are_off_by_the_root_mean_square_in_deviations(
    found: np.ndarray, error: float
) -> None:
    heads = {"cls_logits": LOGITS, "bbox_regression": LOGITS}
    assert heads_error(heads, {**heads, "bbox_regression": found}) == pytest.approx(error)


def test_convolutions_are_counted_by_type_and_provider(tmp_path: Path) -> None:
    def node(op: str, provider: str, dtype: str) -> dict[str, object]:
        shapes = [{dtype: [1, 3, 8, 8]}, {dtype: [4, 3, 1, 1]}]
        return {"args": {"op_name": op, "provider": provider, "input_type_shape": shapes}}

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    events = [
        {"name": "session", "args": {}},
        node("Conv", cuda, "float16"),
        node("FusedConv", cuda, "float"),
        node("QLinearConv", cuda, "uint8"),
        node("Conv", cpu, "float"),
        node("Relu", cpu, "float"),
        {"args": {"op_name": "Conv", "provider": cuda}},  # a fence, not a kernel
    ]
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(events))
    assert convolutions(profile, cuda) == {
        **{"int8": 1, "fp16": 1, "fp32": 1, "other": 0},
        "elsewhere": 1,
    }


def test_training_and_fp32_are_compared_with_the_processor(files: Files) -> None:
    exact = check_training(files, "off", "cpu")
    assert passed(exact)
    assert max(reading.value for reading in exact) == 0  # the processor with itself
    rounded = check_training(files, "bf16", "cpu")
    assert passed(rounded)
    assert min(reading.value for reading in rounded) > 0
    fp32, _ = check_fp32("cpu")
    assert 0 < fp32.value < 1e-6
    assert not replace(fp32, value=1e-3).passed  # TF32
