"""Does fp32 mean fp32 while something is measured, and what it meant before afterwards?"""

import pytest
import torch

from adapt.runtime import allow_tf32, exact_fp32

BACKENDS = torch.backends.cudnn, torch.backends.cuda.matmul


def allowed():
    return tuple(backend.allow_tf32 for backend in BACKENDS)


@pytest.mark.parametrize("before", [(True, False), (True, True), (False, False)])
def test_no_tf32_within_and_what_was_before_afterwards_even_after_an_error(before):
    usual = allow_tf32(*before)
    with pytest.raises(ZeroDivisionError), exact_fp32():
        _ = 1 / sum(allowed())
    assert allow_tf32(*usual) == before
    assert allowed() == usual == (True, False)  # PyTorch's own default
