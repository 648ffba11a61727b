"""Which runtimes and precisions can a detector be deployed in, and how may its graph end?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from adapt.errors import AdaptError

Runtime = Literal["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
Precision = Literal["fp32", "fp16", "int8"]
Int8For = Literal["ort-cpu", "tensorrt"]  # whose integer kernels compute an int8 file
# With non-maximum suppression by tensor operations, by ONNX's operator, or with the raw heads.
Tail = Literal["tensor-nms", "onnx-nms", "none"]


def known_runtime(text: str, option: str) -> Runtime:
    """Return a runtime by its name.

    Raises:
        AdaptError: If none has it.
    """
    for known in RUNTIMES:
        if text == known:
            return known
    raise AdaptError(f"{option} must be one of {', '.join(RUNTIMES)}, got {text!r}")


def allow_tf32(convolutions: bool, products: bool) -> tuple[bool, bool]:
    """Say whether PyTorch may compute fp32 on a GPU in TF32; return what was said before.

    The mantissa of TF32 is that of fp16. By default convolutions take it, and matrix products do
    not. The setting belongs to the process.
    """
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32, matmul.allow_tf32 = convolutions, products
    return before


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Let PyTorch compute fp32 in fp32 while something is measured or evaluated.

    Trainings keep PyTorch's default.
    """
    before = allow_tf32(False, False)
    try:
        yield
    finally:
        allow_tf32(*before)


def usual_tail(runtime: str) -> Tail:
    """Return how graphs for a runtime end by default."""
    # ONNX Runtime's kernel for NonMaxSuppression is fast: it compares only the few candidates above
    # the score threshold. TensorRT-RTX has none; with it, shapes would also depend on the data,
    # which no CUDA graph can capture.
    return "onnx-nms" if runtime.startswith("ort") else "tensor-nms"
