"""What does each choice of a space cost in loss, one at a time? (scores worth summing)

The trained source is the teacher. An operation of a smaller expansion or without
squeeze-excitation, fewer operations of a block, or a narrower block each replace what it has there,
one at a time, and the rise of the held-out loss is the choice's score. A network's score is the sum
over its choices (LANA, Puzzle). What the source has already, and what contains it, costs nothing:
wider blocks, larger kernels, more operations.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from adapt.architecture import Architecture
from adapt.space import SKIP, Operation, SearchSpace
from search.derive.scores import Scores


def score(
    loss: Callable[[Architecture], float],
    source: Architecture,
    space: SearchSpace,
) -> Scores:
    """Score every choice of a space.

    Args:
        loss: Returns the held-out loss of a network.
        source: The teacher's backbone, of as many blocks.
        space: The space.
    """
    known = {network: loss(network) for network in networks_to_measure(source, space)}
    base = known[source]
    ops, widths = [], []
    for number, block in enumerate(space.blocks):
        widths.append(
            tuple(known[_narrowed(source, number, width)] - base for width in block.widths)
        )
        removed = _removal_rises(known, source, number, block.num_ops)
        ops.append(
            tuple(
                tuple(
                    removed[position]
                    if op == SKIP
                    else known[_weakened(source, number, position, op)] - base
                    for op in block.candidates(position)
                )
                for position in range(block.num_ops)
            )
        )
    return Scores(tuple(ops), tuple(widths), base)


def networks_to_measure(source: Architecture, space: SearchSpace) -> list[Architecture]:
    """Return the source, and every network that differs from it in one choice and loses by it."""
    return list(dict.fromkeys([source, *_changes(source, space)]))


def _changes(source: Architecture, space: SearchSpace) -> Iterator[Architecture]:
    """Return the networks to measure; the source among them where a choice changes nothing."""
    for number, block in enumerate(space.blocks):
        for width in block.widths:
            yield _narrowed(source, number, width)
        for kept in range(1, block.num_ops + 1):
            yield _shortened(source, number, kept)
        for position in range(block.num_ops):
            for op in block.candidates(position):
                if op != SKIP:
                    yield _weakened(source, number, position, op)


def _removal_rises(
    known: dict[Architecture, float], source: Architecture, number: int, length: int
) -> list[float]:
    """Return what skipping a position adds, once all later ones are skipped.

    Networks do not tell which of their operations were skipped, and the mapping copies a block's
    first ones: it is always the last ones that are lost. No removal adds less than that of a later
    one, so that the best sum never skips an earlier one alone.
    """
    losses = [known[_shortened(source, number, kept)] for kept in range(1, length + 1)]
    rises = [0.0, *(before - after for before, after in pairwise(losses))]
    for position in range(length - 2, 0, -1):
        rises[position] = max(rises[position], rises[position + 1])
    return rises


def _narrowed(source: Architecture, number: int, width: int) -> Architecture:
    return _with_block(source, number, width=min(width, source.blocks[number].width))


def _shortened(source: Architecture, number: int, kept: int) -> Architecture:
    return _with_block(source, number, ops=source.blocks[number].ops[:kept])


def _weakened(source: Architecture, number: int, position: int, op: Operation) -> Architecture:
    ops = list(source.blocks[number].ops)
    if position < len(ops):
        has = ops[position]
        kernel, expansion = min(op.kernel, has.kernel), min(op.expansion, has.expansion)
        ops[position] = Operation(kernel, expansion, op.se and has.se)
    return _with_block(source, number, ops=tuple(ops))


def _with_block(source: Architecture, number: int, **changes: Any) -> Architecture:
    blocks = list(source.blocks)
    blocks[number] = replace(blocks[number], **changes)
    return replace(source, blocks=tuple(blocks))
