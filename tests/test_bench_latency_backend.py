import importlib.util
import pickle

import pytest
import torch
from profile_parts import DETECTOR, NETWORK, SIZE

from adapt.cost.units import P6, Boundary, Lateral, MBConvUnit, Rest, Stem, rest_unit
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from bench.latency.backend import (
    OrtBackend,
    TensorRTBackend,
    TorchBackend,
    conditions,
    open_backend,
)
from bench.latency.onnx_units import LIGHT, TENSORRT_LIGHT, onnx_model
from bench.latency.subject import WholeDetector
from export.engine.build import build_plan
from export.engine.configure import BuildOptions

SUBJECTS = [
    Stem(8, 64, 64),
    MBConvUnit(8, 8, 5, 6, 1, True, 16, 16),
    MBConvUnit(8, 16, 3, 1, 2, False, 16, 16),
    MBConvUnit(8, 8, 5, 2.5, 1, True, 16, 16, activation="hardswish", se=True),
    Lateral(8, 8, 8, 8),
    P6(8, 8, 2, 2),
    Boundary(8, 8, 8),
    rest_unit(DETECTOR, SIZE),
    WholeDetector(NETWORK, DETECTOR, SIZE),
]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx"
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def kinds(subject):
    return type(subject).__name__


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("runtime", "precision"), [("ort-cpu", "fp32"), ("ort-cpu", "int8"), ("torch", "fp32")]
)
def test_every_kind_of_subject_is_timed_on_this_processor(runtime, precision, batch):
    target = open_backend(runtime, precision=precision, batch=batch)
    assert not target.isolated
    for subject in SUBJECTS:
        timer = target.load(target.build(subject))
        assert 0 < timer().latency_ms < 10_000


def test_ort_takes_longer_for_more_images():
    subject = MBConvUnit(32, 32, 5, 6, 1, True, 40, 40)

    def fastest(batch):
        target = OrtBackend("ort-cpu", batch=batch)
        timer = target.load(target.build(subject))
        return min(timer().latency_ms for _ in range(10))

    assert fastest(8) > 3 * fastest(1)


@pytest.mark.trt
@needs_rtx
@pytest.mark.parametrize(
    "subject",
    [  # the whole detector holds its rest
        pytest.param(s, marks=[pytest.mark.slow] if isinstance(s, Rest) else []) for s in SUBJECTS
    ],
    ids=kinds,
)
def test_engines_of_every_kind_of_subject_are_built(subject, tmp_path):
    cache = tmp_path / "timing-cache"  # TensorRT-RTX has none
    target = open_backend("tensorrt-rtx", precision="fp16", timing_cache=cache)
    built = target.build(subject)
    assert len(built) > 1000
    assert not cache.exists()
    assert target.version()[0].isdigit()


@pytest.mark.trt
@needs_rtx
def test_light_convolutions_are_no_pointwise_kernels_in_engines():
    options = BuildOptions("tensorrt_rtx")
    few, enough = (
        build_plan(onnx_model(Boundary(64, 8, 8), precision="fp16", light=light), "it", options)
        for light in (LIGHT, TENSORRT_LIGHT)
    )
    assert b"MulAdd" in few.plan
    assert b"MulAdd" not in enough.plan


@pytest.mark.parametrize(
    "target", [OrtBackend("ort-cuda"), TensorRTBackend("tensorrt"), TorchBackend()], ids=kinds
)
def test_targets_travel_to_other_processes(target):
    assert pickle.loads(pickle.dumps(target)) == target
    assert hash(target) == hash(pickle.loads(pickle.dumps(target)))


def test_what_runs_on_a_gpu_is_isolated():
    assert OrtBackend("ort-cuda").isolated
    assert TensorRTBackend("tensorrt").isolated
    assert not OrtBackend("ort-cpu").isolated


@pytest.mark.parametrize(
    ("runtime", "options", "message"),
    [
        ("ort-cpu", {"threads": 0}, "threads must be at least 1, got 0"),
        ("torch", {"batch": 0}, "batch must be at least 1, got 0"),
        ("tflite", {}, r"runtime must be one of torch, ort-cpu, ort-cuda, .*, got 'tflite'"),
    ],
)
def test_bad_options_are_refused(runtime, options, message):
    with pytest.raises(AdaptError, match=message):
        open_backend(runtime, **options)


@no_gpu
@pytest.mark.parametrize(
    ("runtime", "precision", "message"),
    [
        ("torch", "fp16", "eager PyTorch does not run fp16 detectors on cpu"),
        ("torch", "int8", "eager PyTorch does not run int8 detectors on cpu"),
        ("ort-cuda", "fp32", "ort-cuda"),
        pytest.param(
            "tensorrt-rtx", "fp16", "builds engines here but needs an NVIDIA GPU", marks=needs_rtx
        ),
    ],
)
def test_what_cannot_measure_here_is_refused(runtime, precision, message):
    with pytest.raises(AdaptError, match=message) as error:
        conditions(open_backend(runtime, precision=precision), SIZE)
    assert "\n" not in str(error.value)


def test_conditions_hold_what_the_target_was_asked_for():
    found = conditions(open_backend("ort-cpu", precision="int8", batch=2, threads=2), SIZE)
    assert str(found) == "ort-cpu int8 batch 2"
    assert (found.threads, found.height, found.width) == (2, 64, 64)
    assert found.device_options() == {
        "runtime": "ort-cpu",
        "precision": "int8",
        "batch": 2,
        "threads": 2,
    }


def test_resized_images_have_no_fixed_size_to_measure_at():
    with pytest.raises(AdaptError, match="use the letterbox 800x1344"):
        conditions(OrtBackend("ort-cpu"), InputSize(800, 1333, "shortest-edge"))
