"""Which logit has a probability that is computed otherwise than by a sigmoid?"""

from torch import Tensor


def logit_of(logarithm: Tensor) -> Tensor:
    """Return the logits of probabilities, given their logarithms in float32."""
    # Of a probability that rounds to 1, the logarithm would be 0 and the logit infinite.
    logarithm = logarithm.clamp(max=-1e-6)
    return logarithm - (1 - logarithm.exp()).log()
