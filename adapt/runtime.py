"""What can a detector be deployed on, in which precision, and how does its graph end?"""

from typing import Literal

Runtime = Literal["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
# Non-maximum suppression by tensor operations, by ONNX's operator, or none: raw heads.
Tail = Literal["tensor-nms", "onnx-nms", "none"]


def usual_tail(runtime: str) -> Tail:
    """Return how graphs for a runtime end if nobody asks otherwise.

    ONNX Runtime has a kernel for NonMaxSuppression, which looks at the few candidates above the
    score threshold only. TensorRT-RTX has none, and a graph with it has shapes that depend on the
    data, which a CUDA graph cannot hold.
    """
    return "onnx-nms" if runtime.startswith("ort") else "tensor-nms"
