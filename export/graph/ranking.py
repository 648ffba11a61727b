"""Which pairs of anchor and class reach non-maximum suppression? (the best ones)

Few pairs of a trained detector score above the threshold, so where a graph may have shapes that
depend on the data, only those are ranked. On a CPU, ranking all anchors takes as long as several
convolutions.
"""

# B images, A anchors, K classes, C candidates

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

NOT_A_CANDIDATE = -100.0  # logit of the rows that are left over: a score of 0 in float32
ROUNDING = 1e-3  # of a logit and its score, which are compared with the threshold in turn


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest logits of all pairs of anchor and class, with their anchors and classes.

    Args:
        logits: ``Tensor[B, A, K]``.
        count: How many.

    Returns:
        Three ``Tensor[B, C]`` with ``C = min(count, A * K)``, in descending order of the logits.
    """
    classes = logits.shape[2]
    # An anchor whose best logit is not among the ``count`` best of the anchors has no logit among
    # the ``count`` best of all, so only the logits of those anchors are sorted: a small part.
    anchors = logits.amax(2).topk(min(count, logits.shape[1])).indices
    pairs = rows_of(logits, anchors).flatten(1)
    values, index = pairs.topk(min(count, pairs.shape[1]))
    return values, anchors.gather(1, index // classes), index % classes


def rows_of(table: Tensor, index: Tensor) -> Tensor:
    """Select rows of each image's table: ``Tensor[B, N, w], Tensor[B, C] -> Tensor[B, C, w]``."""
    return table.gather(1, index.unsqueeze(2).expand(-1, -1, table.shape[2]))


def lowest_logit(score_threshold: float) -> float:
    """Return a logit whose score is a little below a threshold; -inf for 0."""
    if score_threshold <= 0:
        return -math.inf
    if score_threshold >= 1:
        return -NOT_A_CANDIDATE
    return math.log(score_threshold / (1 - score_threshold)) - ROUNDING


@torch.library.custom_op("adapt::best_pairs_above", mutates_args=())
def best_pairs_above(logits: Tensor, count: int, lowest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what :func:`best_pairs` does, of the pairs whose logit is above ``lowest``.

    A custom operator, for tail ``onnx-nms``: the exporter writes
    :func:`_onnx_best_pairs_above`, which ranks these pairs alone.

    Args:
        logits: ``Tensor[1, A, K]``; several images would have different numbers of pairs.
        count: How many.
        lowest: Pairs up to here are no candidates.

    Returns:
        Three ``Tensor[1, C]`` with ``C = min(count, A * K)``; rows that are left over have the
        logit :data:`NOT_A_CANDIDATE`, anchor 0 and class 0.
    """
    values, anchors, labels = best_pairs(logits, count)
    found = values > lowest
    missing = values.new_tensor(NOT_A_CANDIDATE)
    return torch.where(found, values, missing), anchors * found, labels * found


@best_pairs_above.register_fake
def _(logits: Tensor, count: int, lowest: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = 1, min(count, logits.shape[1] * logits.shape[2])
    anchors, labels = (logits.new_empty(shape, dtype=torch.int64) for _ in range(2))
    return logits.new_empty(shape), anchors, labels


def onnx_translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Return what PyTorch's exporter calls to write the custom operator of this module."""
    return {torch.ops.adapt.best_pairs_above.default: _onnx_best_pairs_above}


def _onnx_best_pairs_above(logits: Any, count: int, lowest: float) -> Any:
    """Write :func:`best_pairs_above`, whose parameters these are, in ONNX operators."""
    import onnxscript

    op: Any = onnxscript.opset20
    _, anchors, classes = logits.shape
    count = min(count, anchors * classes)

    def numbers(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    table = op.Reshape(logits, numbers(anchors, classes))
    best = op.ReduceMax(table, numbers(1), keepdims=0)
    above = op.NonZero(op.Greater(best, op.Constant(value_float=lowest)))
    above = op.Reshape(above, numbers(-1))
    number = op.Min(op.Shape(above), numbers(min(count, anchors)))
    _, chosen = op.TopK(op.Gather(best, above), number, sorted=0)
    rows = op.Gather(above, chosen)
    pairs = op.Reshape(op.Gather(table, rows), numbers(-1))
    number = op.Min(op.Shape(pairs), numbers(count))
    values, index = op.TopK(pairs, number)
    per_row = op.Constant(value_int=classes)
    left_over = op.Concat(numbers(0), op.Sub(numbers(count), number), axis=0)

    def filled(found: Any, value: Any) -> Any:
        return op.Reshape(op.Pad(found, left_over, value), numbers(1, count))

    none = op.Constant(value_int=0)
    return (
        filled(values, op.Constant(value_float=NOT_A_CANDIDATE)),
        filled(op.Gather(rows, op.Div(index, per_row)), none),
        filled(op.Mod(index, per_row), none),
    )
