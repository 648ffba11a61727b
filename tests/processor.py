"""What can this processor compute? (int8 of ONNX Runtime)"""

import platform
from pathlib import Path

import pytest


def skip_where_int8_saturates() -> None:
    """Skip a test of int8's values where ONNX Runtime adds their products in 16 bits.

    It does on x86-64 processors without VNNI, where sums of two products overflow: such a detector
    is far from fp32, and the gate of AP refuses it.
    """
    file = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not file.is_file():
        return
    if not {"avx512_vnni", "avx_vnni"} & set(file.read_text().split()):
        pytest.skip("needs a processor with VNNI: int8 of ONNX Runtime saturates on this one")
