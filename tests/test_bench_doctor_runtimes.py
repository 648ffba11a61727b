"""What does `adapt doctor` say of each runtime?"""

import importlib.util
import json
import sys
from importlib import metadata

import pytest
import torch
from simulated_gpu import simulated_gpu

from bench.doctor import runtimes
from bench.doctor.runtimes import RuntimeState, diagnose, runtime_state, to_json
from export.run.runner import RUNTIMES

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def test_every_runtime_has_a_state_and_json_holds_it_whole():
    found = diagnose()
    content = json.loads(json.dumps(to_json(found)))
    for runtime in RUNTIMES:
        state = content[f"runtime {runtime}"]
        assert state["usable"] or (state["problem"] and state["fix"])


@pytest.mark.parametrize("runtime", ["torch", "ort-cpu"])
def test_what_runs_on_a_cpu_is_usable(runtime):
    state = runtime_state(runtime)
    assert state.usable
    assert str(state) == f"{state.version}: usable"


@NO_GPU
def test_onnx_runtime_without_a_gpu_says_what_it_needs():
    state = runtime_state("ort-cuda")
    assert not state.usable
    assert "not usable here: no CUDA GPU found; run it on a machine with an NVIDIA" in str(state)


@NO_GPU
@pytest.mark.trt
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")
def test_tensorrt_rtx_builds_without_a_gpu_and_does_not_run():
    state = runtime_state("tensorrt-rtx")
    assert (state.builds, state.usable) == (True, False)
    assert ": builds engines, not usable here: no CUDA GPU" in str(state)


@pytest.mark.parametrize(("runtime", "extra"), [("tensorrt", "trt"), ("tensorrt-rtx", "trt-rtx")])
def test_a_missing_tensorrt_says_what_to_install(runtime, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime.replace("-", "_"), None)
    assert str(runtime_state(runtime)).startswith(
        f"not installed; run `pip install 'adapt-detector[{extra}]'`"
    )


@pytest.mark.parametrize(
    ("runtime", "package"), [("ort-cpu", "onnxruntime"), ("ort-cuda", "onnxruntime-gpu")]
)
def test_a_missing_onnx_runtime_says_what_to_install(runtime, package, monkeypatch):
    def nothing(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(runtimes.metadata, "version", nothing)
    state = runtime_state(runtime)
    assert state == RuntimeState(
        None, usable=False, problem="not installed", fix=f"run `pip install {package}`"
    )


def test_on_a_gpu_engines_are_usable_and_tensorrt_rtx_says_what_nvidia_does_not_support():
    with simulated_gpu("10.16.0.72"):
        assert str(runtime_state("tensorrt")) == "10.16.0.72: builds engines, usable"
    with simulated_gpu("rtx_1.7.1.116"):
        state = runtime_state("tensorrt-rtx")
        assert state.usable
        assert "this GPU has 8.0: use runtime tensorrt" in str(state)
