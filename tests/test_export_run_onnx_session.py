"""Does ONNX Runtime run on what was asked for, in fp32 that is fp32, or say why it cannot?"""

import sys
from types import SimpleNamespace

import pytest
import torch

from adapt.errors import AdaptError
from bench.latency.onnx_units import unit_model
from bench.latency.subject import ANCHOR
from export.run import onnx_session
from export.run.onnx_session import ort_session


class Session:
    """Takes what an inference session is made with, and loads the providers that it is told."""

    def __init__(self, loads):
        self.loads = loads

    def __call__(self, model, options, **how):
        self.how = how
        if isinstance(self.loads, Exception):
            raise self.loads
        return SimpleNamespace(get_providers=lambda: self.loads)


@pytest.fixture
def runtime_with(monkeypatch):
    """Put a GPU build of ONNX Runtime in place whose provider loads, does not, or fails."""
    import onnxruntime

    def put(loads, complaint=""):
        fake = SimpleNamespace(
            __file__=onnxruntime.__file__,
            SessionOptions=onnxruntime.SessionOptions,
            InferenceSession=Session(loads),
            get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
            preload_dlls=lambda: print(complaint) if complaint else None,
        )
        monkeypatch.setattr(onnx_session, "_onnxruntime", lambda: fake)
        monkeypatch.setattr(onnx_session, "_preload", onnx_session._preload.__wrapped__)
        return fake.InferenceSession

    return put


def test_fp32_on_cuda_is_not_tf32_and_a_failed_run_does_not_go_on_with_the_cpu(runtime_with):
    session = runtime_with(["CUDAExecutionProvider", "CPUExecutionProvider"])
    ort_session("ort-cuda", b"", 1)
    first, second = session.how["providers"]
    assert first == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert second == ("CPUExecutionProvider", {})
    assert session.how["enable_fallback"] == 0


@pytest.mark.parametrize(
    ("loads", "reason"),
    [
        (RuntimeError("CUDA failure 100: no CUDA-capable\ndevice"), "failure 100: no CUDA-capable"),
        (["CPUExecutionProvider"], "libcudnn.so.9 is missing"),
    ],
    ids=["fails", "is left out"],
)
def test_a_provider_that_does_not_load_says_why(runtime_with, monkeypatch, capsys, loads, reason):
    runtime_with(loads, "libcudnn.so.9 is missing")
    monkeypatch.setattr(onnx_session, "_load_error", lambda _: "")
    with pytest.raises(AdaptError, match=rf"does not load .*{reason}.*choose runtime ort-cpu"):
        ort_session("ort-cuda", b"", 1)
    assert capsys.readouterr().out == ""  # it belongs to results


@pytest.mark.skipif(sys.platform != "linux", reason="names a library of Linux")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_real_library_names_what_it_lacks():
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    with pytest.raises(AdaptError, match=r"does not load .*(lib|CUDA).*choose runtime ort-cpu"):
        ort_session("ort-cuda", unit_model(ANCHOR), 1)
