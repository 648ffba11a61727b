"""What can this processor compute? (int8 of ONNX Runtime)"""

import pytest

from adapt.machine import int8_saturates


def skip_where_int8_saturates() -> None:
    """Skip a test of int8's values where ONNX Runtime adds their products in 16 bits.

    It does on x86-64 processors without VNNI, where sums of two products overflow: such a detector
    is far from fp32, and the gate of AP refuses it.
    """
    if int8_saturates():
        pytest.skip("needs a processor with VNNI: int8 of ONNX Runtime saturates on this one")
