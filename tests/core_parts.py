"""Small search spaces, random networks and one-hot choices for the tests of the core."""

import random
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from adapt.architecture import Architecture, Choices
from adapt.network.supernet import Supernet
from adapt.space import BlockSpace, Operation, SearchSpace
from search.recipe.optimisation import ComputeRecipe

# Strides 8, 16 and 32 are tapped, as in Table I; everything else is as small as it can be.
TINY_SPACE = """
name = "tiny"
source = "mobilenet_v2"
stem_width = 8
first_width = 4
taps = [2, 3, 4]

[[blocks]]
num_ops = 2
stride = 2
kernels = [3]
expansions = [2]
widths = [4, 8, 4]

[[blocks]]
num_ops = 3
stride = 2
kernels = [3, 5]
expansions = [1, 2]
widths = [4, 12, 4]

[[blocks]]
num_ops = 2
stride = 2
kernels = [3]
expansions = [2, 3]
widths = [6, 10, 2]

[[blocks]]
num_ops = 1
stride = 2
kernels = [3, 5]
expansions = [2]
widths = [8, 16, 8]
"""

Indices = tuple[list[list[int]], list[int]]  # operation per block and position, width per block


def tiny(source: str = "mobilenet_v2") -> SearchSpace:
    space = SearchSpace.from_dict(tomllib.loads(TINY_SPACE))
    if source == "resnet50":
        return with_bottlenecks(space)
    space = replace(space, source=source)
    return with_excitation(space) if source == "mobilenet_v3_large" else space


def with_bottlenecks(space: SearchSpace) -> SearchSpace:
    """The space behind a stem with pooling, wide enough for hidden channels of several widths."""
    blocks = tuple(
        replace(
            block,
            stride=1 if number == 0 else 2,
            expansions=(0.25, 0.5),
            widths=tuple(4 * width for width in block.widths),
        )
        for number, block in enumerate(space.blocks)
    )
    return replace(space, source="resnet50", first_width=space.stem_width, blocks=blocks)


def with_excitation(space: SearchSpace) -> SearchSpace:
    """The space with squeeze-excitation, expansions that are no whole numbers, and wide enough for
    both to be of several widths."""
    first, second, third, fourth = (
        replace(block, widths=tuple(4 * width for width in block.widths)) for block in space.blocks
    )
    second = replace(second, expansions=(1, 2.3), squeeze=(False, True))
    third = replace(third, expansions=(2.5, 3), squeeze=(True,))
    return replace(space, blocks=(first, second, third, fourth))


def one_block(**changes: object) -> SearchSpace:
    """Two widths, two operations, one position: the 2 x 2 space of the closed forms."""
    block = BlockSpace(num_ops=1, stride=2, kernels=(3, 5), expansions=(2,), widths=(2, 6))
    return SearchSpace("one", "mobilenet_v2", 4, 4, (1,), (replace(block, **changes),))


def random_choices(space: SearchSpace, seed: int) -> Indices:
    chance = random.Random(seed)
    ops = [
        [chance.randrange(len(block.candidates(position))) for position in range(block.num_ops)]
        for block in space.blocks
    ]
    return ops, [chance.randrange(len(block.widths)) for block in space.blocks]


def random_architecture(space: SearchSpace, seed: int) -> Architecture:
    return Choices.of(*random_choices(space, seed)).architecture(space)


def one_hot(space: SearchSpace, choices: Indices) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Probabilities that leave no doubt, as :meth:`Supernet.probabilities` returns them."""
    ops, widths = choices
    blocks = list(zip(space.blocks, ops, widths, strict=True))
    return (
        [
            [torch.eye(len(block.candidates(p)))[index] for p, index in enumerate(chosen)]
            for block, chosen, _ in blocks
        ],
        [torch.eye(len(block.widths))[width] for block, _, width in blocks],
    )


@torch.no_grad()
def decide(supernet: Supernet, choices: Indices) -> None:
    """Make softmax of alpha and beta exactly one-hot."""
    ops, widths = choices
    for alphas, chosen in zip(supernet.alphas, ops, strict=True):
        _decide(list(alphas.parameters()), chosen)
    _decide(list(supernet.betas), widths)


def _decide(parameters: Sequence[Tensor], chosen: Sequence[int]) -> None:
    for parameter, index in zip(parameters, chosen, strict=True):
        parameter.fill_(-1e4)
        parameter[index] = 0


@torch.no_grad()
def shake(module: nn.Module, seed: int) -> None:
    """Give every parameter and every statistic of a module a value that is none of the defaults."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.uniform_(0.5, 1.5, generator=generator)
            layer.bias.normal_(0, 0.2, generator=generator)
        if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
            layer.running_mean.normal_(0, 0.2, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.num_batches_tracked.fill_(7)


def mostly_slow(number: int, usual: int) -> list[Any]:
    """Seeds that promise the same, of which a few are in the usual suite."""
    return [pytest.param(n, marks=[] if n < usual else [pytest.mark.slow]) for n in range(number)]


def superset(
    source: Architecture,
    seed: int,
    more: Sequence[float] = (0, 1, 3),
    new: Sequence[float] = (1, 2, 6),
) -> Architecture:
    """Grow every block by chance: wider, deeper, larger kernels and expansions.

    Args:
        source: What is grown.
        seed: Which way.
        more: By what an expansion may grow.
        new: Expansions that an added operation may have.
    """
    chance = random.Random(seed)
    blocks = []
    for block in source.blocks:
        grown = [
            replace(
                op,
                kernel=op.kernel + chance.choice((0, 2, 4)),
                expansion=op.expansion + chance.choice(more),
            )
            for op in block.ops
        ]
        extra = [Operation(chance.choice((3, 5, 7)), chance.choice(new))] * chance.choice((0, 1, 2))
        width = block.width + chance.choice((0, 1, 8))
        blocks.append(replace(block, width=width, ops=(*grown, *extra)))
    return replace(source, blocks=tuple(blocks))


# A training in another way than plainly.
half_precision_and_compiled = pytest.mark.parametrize(
    "compute",
    [
        ComputeRecipe(amp="bf16"),
        pytest.param(ComputeRecipe(compile=True), marks=pytest.mark.slow),
    ],
    ids=["half precision", "compiled"],
)


def only_usually(usual: str, every: Iterable[str]) -> list[Any]:
    """Values that promise the same, of which one is in the usual suite."""
    slow = [pytest.mark.slow]
    return [pytest.param(value, marks=[] if value == usual else slow) for value in every]


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or a folder unless another test has, here or in another process."""
    mark = path.with_name(f"{path.name}.made")
    with FileLock(f"{path}.lock"):
        if not mark.exists():
            make(path)
            mark.touch()
    return path


class StoppedError(Exception):
    """The power went out."""


def stop_after(steps: int) -> Callable[..., None]:
    """Progress that stops a training after so many steps."""

    def progress(done: int, total: int, note: str = "", /) -> None:
        if done == steps:
            raise StoppedError

    return progress


def assert_same_state(first: Any, second: Any, where: str = "state") -> None:
    """Compare nested states of checkpoints bit for bit."""
    if isinstance(first, Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same_state(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{where}[{index}]")
    else:
        assert first == second, where
