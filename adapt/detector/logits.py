"""Which logit has a probability that is computed otherwise than by a sigmoid?"""

from torch import Tensor


def logit_of(logarithm: Tensor) -> Tensor:
    """Return the logits of probabilities, given their logarithms in float32."""
    # Of a probability that rounds to 1, the logarithm would be 0 and the logit infinite.
    logarithm = logarithm.clamp(max=-1e-6)
    return logarithm - (1 - logarithm.exp()).log()


def object_logits(logits: Tensor) -> Tensor:
    """Return of every object class the logit of its softmax.

    Args:
        logits: Of background and classes, ``Tensor[N, anchors, 1 + K]``.

    Returns:
        float32 ``Tensor[N, anchors, K]``: z_k - log(sum of e^z over all others).
    """
    return logit_of(logits.float().log_softmax(-1)[..., 1:])
