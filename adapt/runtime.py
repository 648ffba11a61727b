"""What can a detector be deployed on, and in which precision?"""

from typing import Literal

Runtime = Literal["ort-cpu", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch"]
Precision = Literal["fp32", "fp16", "int8"]
