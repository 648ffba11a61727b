import sys

import numpy as np
import pytest
import torch
from export_parts import INFO, dynamic, exported, half, images, int8, saved
from processor import skip_where_int8_saturates

from adapt.errors import AdaptError
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.installed import trt_flavours
from export.run.matching import Tolerances, match_detections
from export.run.runner import RUNTIMES, TorchRunner, open_runner

CUDA = torch.cuda.is_available()


@pytest.fixture(scope="module")
def artifacts(exports):
    """What each runtime runs, by variant."""
    onnx = {
        "fp32": exported(exports),
        "fp16 uint8": half(exports),
        "onnx-nms": exported(exports, "onnx-nms"),
        "int8": int8(exports),
        "dynamic uint8": dynamic(exports),
    }
    return {"torch": {"fp32": saved(exports)}, "ort-cpu": onnx, "ort-cuda": onnx}


VARIANTS = ("fp32", "fp16 uint8", "int8", "dynamic uint8")
CASES = [
    ("torch", "fp32"),
    *((runtime, v) for runtime in RUNTIMES if runtime != "torch" for v in VARIANTS),
    *((runtime, "onnx-nms") for runtime in ("ort-cpu", "ort-cuda")),
]
# Noise makes many boxes of near-equal scores, of which rounding chooses others.
AGREE = {"fp32": 0.98, "fp16": 0.9, "int8": 0.5}


@pytest.fixture(params=CASES, ids=" ".join)
def runner(request, artifacts, tmp_path):
    runtime, variant = request.param
    if runtime not in ("torch", "ort-cpu") and not CUDA:
        pytest.skip("needs a CUDA device")
    if runtime.startswith("tensorrt"):
        artifact = build_plan(artifacts["ort-cpu"][variant], tmp_path, runtime)
    else:
        artifact = artifacts[runtime][variant]
    with open_runner(runtime, artifact, threads=1) as runner:
        yield runner


def build_plan(onnx, folder, runtime):
    flavour = runtime.replace("-", "_")
    if flavour not in trt_flavours():
        pytest.skip(f"needs {flavour}")
    build_engine(onnx, folder / "detector.plan", BuildOptions(flavour=flavour))
    return folder / "detector.plan"


def test_every_runner_finds_sorted_boxes_inside_the_input(runner):
    (found,) = runner.infer(images(1))
    assert found.boxes.shape == (len(found.scores), 4)
    assert len(found.labels) == len(found.scores) > 50
    assert (np.diff(found.scores) <= 0).all()
    assert found.boxes.min() >= 0
    assert (found.boxes <= [160, 128, 160, 128]).all()


def test_every_runner_returns_the_promised_types(runner):
    (found,) = runner.infer(images(1))
    assert [x.dtype for x in found] == [np.float32, np.float32, np.int64]
    assert set(found.labels) <= {0, 1, 2}


def test_every_runner_agrees_with_torch(runner, artifacts):
    if runner.precision == "int8" and runner.describe()["runtime"] == "ort-cpu":
        skip_where_int8_saturates()
    with TorchRunner(artifacts["torch"]["fp32"]) as reference:
        (expected,) = reference.infer(images(1))
    (found,) = runner.infer(images(1))
    allowed = Tolerances.of(runner.precision)
    report = match_detections(expected, found, score_tol=allowed.score, box_tol=allowed.box)
    assert report.matched > AGREE[runner.precision] * len(expected.scores)


def test_every_runner_says_what_it_is(runner):
    description = runner.describe()
    assert list(description) == ["runtime", "version", "device", "threads"]
    assert description["threads"] in (0, 1)
    assert runner.info == INFO


def test_every_runner_binds_images_to_a_call_without_result(runner):
    call = runner.bind(images(1))
    assert call() is None
    assert call() is None


def test_raw_heads_of_other_runners_are_those_of_torch(exports, artifacts):
    with (
        TorchRunner(artifacts["torch"]["fp32"]) as reference,
        open_runner("ort-cpu", exported(exports, "none")) as runner,
    ):
        expected, found = (r.heads(images(1)) for r in (reference, runner))
    assert expected.keys() == found.keys() == {"cls_logits", "bbox_regression"}
    for name, head in expected.items():
        np.testing.assert_allclose(found[name], head, atol=1e-4)


def test_a_dynamic_batch_takes_as_many_images_as_were_promised(artifacts):
    path = artifacts["ort-cpu"]["dynamic uint8"]
    with open_runner("ort-cpu", path) as runner:
        one_by_one = [runner.infer(images(4)[[i]])[0] for i in range(4)]
        together = runner.infer(images(4))
        for alone, found in zip(one_by_one, together, strict=True):
            np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)
            np.testing.assert_array_equal(alone.labels, found.labels)
        with pytest.raises(AdaptError, match=r"of shape 1-4x3x128x160, got 5x3x128x160"):
            runner.infer(images(5))


def test_torch_threads_are_restored(artifacts):
    before = torch.get_num_threads()
    with open_runner("torch", artifacts["torch"]["fp32"], threads=before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_batch_of_another_size_says_how_to_export(artifacts):
    with (
        open_runner("ort-cpu", artifacts["ort-cpu"]["fp32"]) as runner,
        pytest.raises(AdaptError, match=r"takes images of shape 1x3x128x160, got 2x3x128x160"),
    ):
        runner.infer(images(2))


def test_raw_heads_say_how_to_export(exports):
    with (
        open_runner("ort-cpu", exported(exports, "none")) as runner,
        pytest.raises(AdaptError, match=r"ends in raw heads .*export it with tail 'tensor-nms'"),
    ):
        runner.infer(images(1))


@pytest.mark.parametrize(
    ("runtime", "name", "message"),
    [
        ("tflite", "detector.onnx", "runtime must be one of torch, ort-cpu, ort-cuda.*'tflite'"),
        ("ort-cpu", "detector.safetensors", "runs .onnx files, got .*or choose runtime torch"),
        ("torch", "detector.onnx", "runs .safetensors files, got .*runtime ort-cpu or ort-cuda"),
        ("torch", "detector.pth", r"pass the .safetensors file of this detector$"),
        ("tensorrt", "detector.onnx", "runs .plan files, got .*or choose runtime ort-cpu"),
        ("tensorrt", "absent.plan", "absent.plan does not exist"),
        ("torch", "absent.safetensors", "absent.safetensors does not exist"),
        ("ort-cpu", "absent.onnx", "absent.onnx does not exist"),
    ],
)
def test_wrong_artifacts_and_runtimes_are_explained(runtime, name, message, tmp_path):
    with pytest.raises(AdaptError, match=message):
        open_runner(runtime, tmp_path / name)


def test_no_threads_are_refused(artifacts):
    with pytest.raises(AdaptError, match="threads must be at least 1, got 0"):
        open_runner("ort-cpu", artifacts["ort-cpu"]["fp32"], threads=0)


@pytest.mark.skipif(CUDA, reason="this machine has a CUDA device")
def test_cuda_provider_that_does_not_load_is_never_replaced(artifacts):
    with pytest.raises(AdaptError, match=r"ort-cuda needs .*does not load.*choose runtime ort-cpu"):
        open_runner("ort-cuda", artifacts["ort-cuda"]["fp32"])


@pytest.mark.trt
@pytest.mark.skipif(CUDA, reason="this machine has a CUDA device")
def test_engine_without_gpu_says_where_it_runs(artifacts, tmp_path):
    plan = build_plan(artifacts["ort-cpu"]["fp32"], tmp_path, "tensorrt-rtx")
    table = {
        "tensorrt-rtx": "detector.plan needs an NVIDIA GPU .*detector.plan.json",
        "tensorrt": "was built for runtime tensorrt-rtx, not tensorrt",
    }
    for runtime, message in table.items():
        with pytest.raises(AdaptError, match=message):
            open_runner(runtime, plan)


def test_missing_onnxruntime_says_what_to_install(artifacts, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(AdaptError, match="pip install onnxruntime-gpu"):
        open_runner("ort-cpu", artifacts["ort-cpu"]["fp32"])


def test_pytorch_measures_fp32_without_tf32_and_leaves_the_process_as_it_was(artifacts):
    assert torch.backends.cudnn.allow_tf32
    with TorchRunner(artifacts["torch"]["fp32"]):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_pytorch_computes_heads_where_the_detector_is(artifacts):
    """On a device without data, which refuses tensors of another one as a GPU does."""
    with (
        TorchRunner(artifacts["torch"]["fp32"], device=torch.device("meta")) as runner,
        pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"),
    ):
        runner.heads(images(1))
