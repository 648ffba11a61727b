"""Does `adapt doctor` say which CUDA does not fit, and what to install then?"""

import re
import sys
from types import SimpleNamespace

import pytest
import torch

from bench.doctor import cuda
from bench.doctor.cuda import CudaStack, unsupported_by_rtx

CUDA_13 = {"torch": "13.0", "onnxruntime": "13.0", "TensorRT": "13"}
CUDA_12 = {"torch": "12.8", "onnxruntime": "12.8", "TensorRT": "12"}
A100 = ("NVIDIA A100-SXM4-40GB", "550.54.15", "12.4")
OLD = "The NVIDIA driver on your system is too old (found version 12040)"


def test_one_line_says_what_the_driver_runs_and_what_was_built_for_what():
    assert str(CudaStack(*A100, CUDA_13, OLD)) == (
        "driver 550.54.15 runs CUDA up to 12.4; built for: torch CUDA 13.0, onnxruntime CUDA 13.0, "
        "TensorRT CUDA 13"
    )
    assert str(CudaStack("", "", "", {}, "none")) == "no NVIDIA driver; built for: none"


@pytest.mark.parametrize(
    ("stack", "problem", "fix"),
    [
        (CudaStack(*A100, CUDA_13, OLD), "lists NVIDIA A100.*not find it: .*too old", "trt-cu12"),
        (CudaStack(*A100, {**CUDA_12, "TensorRT": "13"}, ""), "^$", "^TensorRT and the driver"),
        (CudaStack(*A100, {**CUDA_12, "TensorRT": "12 and 13"}, ""), "^$", "^TensorRT and"),
        (CudaStack(*A100, {}, "Torch not compiled with CUDA"), "not compiled", "without CUDA"),
        (CudaStack(*A100, CUDA_12, "no CUDA GPUs are available"), "are available", "is '7' and"),
        (CudaStack("", "", "", CUDA_13, "Found no NVIDIA driver"), "no CUDA GPU", "NVIDIA GPU"),
        (CudaStack(*A100, CUDA_12, ""), "^$", "^$"),  # any minor version of the driver's major one
        (CudaStack("A100", "580.65", "13.0", CUDA_12, ""), "^$", "^$"),  # drivers run what is older
    ],
)
def test_each_misfit_has_its_own_problem_and_fix(stack, problem, fix, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert re.search(problem, stack.problem)
    assert re.search(fix, stack.fix)


@pytest.mark.parametrize("error", [RuntimeError(OLD + "\nmore"), AssertionError(OLD)])
def test_the_reason_is_that_of_pytorch(monkeypatch, error):
    def refuse():
        raise error

    gpu = {"name": A100[0], "driver": A100[1], "cuda": A100[2], "uuid_hash": "0"}
    monkeypatch.setattr(cuda, "gpu_description", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", refuse)
    stack = CudaStack.here()
    assert (stack.gpu, stack.driver, stack.supported) == A100
    assert stack.torch_error == OLD


def test_what_libraries_were_built_for_is_read_from_them(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(cuda_version="13.0"))
    installed = {"tensorrt-cu12"}
    monkeypatch.setattr(cuda, "_installed", installed.__contains__)
    wanted = CudaStack.here().wanted
    assert wanted == {"torch": "12.8", "onnxruntime": "13.0", "TensorRT": "12"}


def test_tensorrt_rtx_is_said_to_support_no_gpu_of_data_centres():
    assert "this GPU has 8.0: use runtime tensorrt" in unsupported_by_rtx((8, 0))
    assert unsupported_by_rtx((8, 9)) == ""
