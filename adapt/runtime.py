"""Which runtimes and precisions can a detector be deployed in, and how may its graph end?"""

from typing import Literal

Runtime = Literal["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
# With non-maximum suppression by tensor operations, by ONNX's operator, or with the raw heads.
Tail = Literal["tensor-nms", "onnx-nms", "none"]


def usual_tail(runtime: str) -> Tail:
    """Return how graphs for a runtime end by default."""
    # ONNX Runtime's kernel for NonMaxSuppression is fast: it compares only the few candidates above
    # the score threshold. TensorRT-RTX has none; with it, shapes would also depend on the data,
    # which no CUDA graph can capture.
    return "onnx-nms" if runtime.startswith("ort") else "tensor-nms"
