"""Which operations, depths and widths may the search choose from? (paper Table I)"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, product
from operator import mul
from pathlib import Path
from typing import Any

from adapt.artifacts import LATER, content_hash, identity, named_toml, parsing, read_text, typed
from adapt.errors import AdaptError
from adapt.traits import Traits, traits_of

PRESETS = Path(__file__).parent / "spaces"
Numbers = tuple[int, ...]
Expansions = tuple[int | float, ...]  # whole ones stay whole numbers, so that hashes do
# Of a block, of a layer, and of an operation; more are slips of a key.
MOST_OPS, MOST_WIDTHS = 100, 10_000
MOST_CHANNELS = 2**16
MOST_TIMES = 99  # a kernel, and an expansion
DECIMALS = 3  # of an expansion: an eighth is 0.125
FORM = re.compile(rf"k([0-9]+)_e([0-9]+(?:\.[0-9]{{1,{DECIMALS}}})?)(_se)?")


def plain(number: float) -> int | float:
    """Return a whole number as such, so that it is written without decimals."""
    return int(number) if number == int(number) else number


@dataclass(frozen=True, order=True)
class Operation:
    """A candidate operation: an MBConv or a bottleneck, as its source has, or :data:`SKIP`.

    Attributes:
        kernel: Size of the kernel: of an MBConv's depthwise, of a bottleneck's dense convolution.
        expansion: Hidden channels per input channel of an MBConv, per output channel of a
            bottleneck; a whole number, or one of up to three decimals.
        se: Whether squeeze-excitation weighs the hidden channels; of MBConvs only.
    """

    kernel: int
    expansion: float
    se: bool = False

    def __str__(self) -> str:
        text = f"k{self.kernel}_e{self.expansion:g}{'_se' if self.se else ''}"
        return "skip" if self == SKIP else text

    @classmethod
    def parse(cls, text: str) -> "Operation":
        """Read the form that :meth:`__str__` writes: ``k5_e6``, ``k3_e2.5_se`` or ``skip``.

        Raises:
            AdaptError: If the text has another form.
        """
        if text == "skip":
            return SKIP
        form = FORM.fullmatch(text)
        if form is None:
            raise AdaptError(f"operation {text!r} is neither 'skip' nor of the form 'k3_e6'")
        kernel, expansion = int(form[1]), plain(float(form[2]))
        if not (0 < kernel <= MOST_TIMES and 0 < expansion <= MOST_TIMES):
            raise AdaptError(
                f"operation {text!r} is not of the form 'k3_e6', of numbers up to {MOST_TIMES}"
            )
        return cls(kernel, expansion, form[3] is not None)


SKIP = Operation(0, 0)


@dataclass(frozen=True)
class BlockSpace:
    """The choices of one searchable block.

    Attributes:
        num_ops: Largest number of operations in sequence (``n`` in Table I).
        stride: Stride of the first operation; the others have stride 1.
        kernels: Kernel sizes.
        expansions: Expansion ratios; those of bottlenecks may be less than 1.
        widths: Output channel candidates, strictly increasing.
        squeeze: Whether operations have squeeze-excitation; both makes it a choice.
    """

    num_ops: int
    stride: int
    kernels: tuple[int, ...]
    expansions: tuple[float, ...]
    widths: tuple[int, ...]
    squeeze: tuple[bool, ...] = field(default=(False,), metadata=LATER)

    def candidates(self, position: int) -> tuple[Operation, ...]:
        """Return the candidates of the operation at ``position``; a block's first is no skip."""
        kinds = product(self.kernels, self.expansions, self.squeeze)
        convs = tuple(Operation(*kind) for kind in kinds)
        return convs if position == 0 else (*convs, SKIP)


@dataclass(frozen=True)
class SearchSpace:
    """Everything the search may choose from, and the fixed layers around it.

    Attributes:
        name: Name of the preset or file.
        source: Backbone whose pretrained parameters are mapped.
        stem_width: Channels of the stem convolution (stride 2).
        first_width: Channels of the fixed first block (kernel 3, expansion 1, stride 1), or those
            of the stem where pooling stands in its place (:class:`adapt.traits.Traits`).
        taps: Blocks, counted from 1, whose outputs feed the feature pyramid.
        blocks: The searchable blocks in order.
    """

    name: str
    source: str
    stem_width: int
    first_width: int
    taps: tuple[int, ...]
    blocks: tuple[BlockSpace, ...]

    @classmethod
    def load(cls, name_or_path: str) -> "SearchSpace":
        """Read a preset by name, or a TOML file by path.

        Raises:
            AdaptError: If there is no such preset or file, or its content is no search space.
        """
        path = named_toml(name_or_path, PRESETS, "search space")
        with parsing("search space", path, f"see those of {PRESETS}"):
            return cls.from_dict(tomllib.loads(read_text(path, "search space")))

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "SearchSpace":
        """Build a space from the TOML content.

        A block's candidates are a range, ``widths`` = (minimum, maximum, step) with the maximum
        included, or one by one, ``width_list``.
        """
        blocks = [
            {**block, "widths": _widths(number, block)}
            for number, block in enumerate(content["blocks"], start=1)
        ]
        space = cls.restore({**content, "blocks": blocks})
        check_taps(space.source, space.taps, [block.stride for block in space.blocks])
        return space

    @classmethod
    def restore(cls, content: dict[str, Any]) -> "SearchSpace":
        """Read what :meth:`to_dict` wrote: unlike the TOML, it lists every width.

        Raises:
            LookupError: If a field is missing.
            TypeError: If there is no list where there must be one.
            ValueError: If a value is wrong.
        """
        blocks = tuple(
            BlockSpace(
                num_ops=typed(int, block["num_ops"]),
                stride=typed(int, block["stride"]),
                kernels=typed(Numbers, block["kernels"]),
                expansions=tuple(map(plain, typed(Expansions, block["expansions"]))),
                widths=typed(Numbers, block["widths"]),
                squeeze=typed(tuple[bool, ...], block.get("squeeze", (False,))),
            )
            for block in content["blocks"]
        )
        return cls(
            name=typed(str, content["name"]),
            source=typed(str, content["source"]),
            stem_width=typed(int, content["stem_width"]),
            first_width=typed(int, content["first_width"]),
            taps=typed(Numbers, content["taps"]),
            blocks=blocks,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        content: dict[str, Any] = identity(self)
        content["taps"] = list(self.taps)
        content["blocks"] = [
            {k: list(v) if isinstance(v, tuple) else v for k, v in identity(block).items()}
            for block in self.blocks
        ]
        return content

    def __post_init__(self) -> None:
        for number, block in enumerate(self.blocks, start=1):
            _check_block(number, block, traits_of(self.source))
        for name in ("stem_width", "first_width"):
            check_whole(name, getattr(self, name))
        check_first_width(self.source, self.stem_width, self.first_width)

    def on_grid(self, grid: int) -> "SearchSpace":
        """Keep only widths that are multiples of ``grid``, and each block's smallest and largest.

        A coarser grid needs fewer measured operations; 1 or 2 keeps the paper's candidates.

        Raises:
            AdaptError: If ``grid`` is not positive.
        """
        if grid < 1:
            raise AdaptError(f"the width grid must be at least 1, got {grid}")
        return replace(
            self, blocks=tuple(replace(b, widths=_thin(b.widths, grid)) for b in self.blocks)
        )

    @cached_property
    def hash(self) -> str:
        """16 hex digits that change with any choice of the space, not with its name."""
        content = self.to_dict()
        del content["name"]
        return content_hash(content)

    def in_widths(self, block: int) -> tuple[int, ...]:
        """Return the possible input widths of the block with index ``block`` (from 0)."""
        return (self.first_width,) if block == 0 else self.blocks[block - 1].widths


def check_first_width(source: str, stem_width: int, first_width: int) -> None:
    """Check that pooling in the place of the first block keeps the channels of the stem.

    Raises:
        AdaptError: If it would not.
    """
    if traits_of(source).pooled and first_width != stem_width:
        raise AdaptError(
            f"the stem of {source} ends with pooling, which keeps its channels: first_width must "
            f"be the {stem_width} of stem_width, got {first_width}"
        )


def check_taps(source: str, taps: Sequence[int], strides: Sequence[int]) -> None:
    """Check that the tapped blocks feed P3, P4 and P5.

    Args:
        source: Name of the source, whose stem all networks have.
        taps: Block numbers from 1.
        strides: Stride of every block.

    Raises:
        AdaptError: If they are not three blocks at strides 8, 16 and 32 of the input.
    """
    stride_after = dict(enumerate(accumulate(strides, mul, initial=traits_of(source).stride)))
    tap_strides = [stride_after.get(tap) for tap in taps]
    if tap_strides != [8, 16, 32] or 0 in taps:
        raise AdaptError(
            f"taps must be three block numbers at strides 8, 16 and 32, got {list(taps)}, which "
            f"are at {tap_strides}"
        )


def _widths(number: int, block: dict[str, Any]) -> tuple[int, ...]:
    """Return a block's candidate widths from either of their two forms in TOML."""
    where = f"block {number}"
    if ("widths" in block) == ("width_list" in block):
        raise AdaptError(f"{where}: name its candidates once, as widths or as width_list")
    if "width_list" in block:
        return tuple(_integers(where, "width_list", block["width_list"]))
    numbers = _integers(where, "widths", block["widths"])
    if len(numbers) == 3 and numbers[2] < 1:
        raise AdaptError(f"{where}: the step of widths must be positive, got {numbers[2]}")
    if len(numbers) != 3 or numbers[1] < numbers[0] or (numbers[1] - numbers[0]) % numbers[2]:
        raise AdaptError(
            f"{where}: widths = {numbers} is no range; write widths = [minimum, maximum, step] "
            f"with whole steps from one to the other, or list the candidates: "
            f"width_list = {numbers}"
        )
    minimum, maximum, step = numbers
    if (maximum - minimum) // step >= MOST_WIDTHS:
        raise AdaptError(
            f"{where}: widths = {numbers} are more than {MOST_WIDTHS}; use larger steps"
        )
    return tuple(range(minimum, maximum + 1, step))


def _integers(where: str, name: str, value: object) -> list[int]:
    if not isinstance(value, list) or any(type(number) is not int for number in value):
        raise AdaptError(f"{where}: {name} must be a list of whole numbers, got {value!r}")
    return value


def _thin(widths: tuple[int, ...], grid: int) -> tuple[int, ...]:
    ends = widths[0], widths[-1]
    return tuple(width for width in widths if width % grid == 0 or width in ends)


def check_whole(name: str, value: object, most: int = MOST_CHANNELS) -> int:
    """Return a whole number from 1 to ``most``, which only a slip or damage exceeds.

    Raises:
        AdaptError: If it is none.
    """
    if type(value) is not int or not 1 <= value <= most:
        raise AdaptError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
    return value


def _check_block(number: int, block: BlockSpace, traits: Traits) -> None:
    where = f"block {number}"
    if block.num_ops < 1:
        raise AdaptError(f"{where}: num_ops must be at least 1, got {block.num_ops}")
    if block.num_ops > MOST_OPS:
        raise AdaptError(f"{where}: num_ops must be at most {MOST_OPS}, got {block.num_ops}")
    if block.stride not in (1, 2):
        raise AdaptError(f"{where}: stride must be 1 or 2, got {block.stride}")
    if not block.kernels or any(k < 1 or k % 2 == 0 for k in block.kernels):
        raise AdaptError(f"{where}: kernels must be odd sizes, got {list(block.kernels)}")
    least = 1 if traits.form == "mbconv" else 10**-DECIMALS
    if not block.expansions or any(e < least for e in block.expansions):
        raise AdaptError(
            f"{where}: expansions must be at least {least}, got {list(block.expansions)}"
        )
    if any(round(e, DECIMALS) != e for e in block.expansions):
        raise AdaptError(
            f"{where}: expansions have at most three decimals, got {list(block.expansions)}"
        )
    if not 0 < len(block.squeeze) == len(set(block.squeeze)):
        raise AdaptError(
            f"{where}: squeeze must be [false], [true] or both, got {list(block.squeeze)}"
        )
    if traits.form == "bottleneck" and any(block.squeeze):
        raise AdaptError(f"{where}: bottlenecks have no squeeze-excitation; leave squeeze out")
    for name, numbers in (("kernels", block.kernels), ("expansions", block.expansions)):
        if max(numbers) > MOST_TIMES:
            raise AdaptError(f"{where}: {name} must be at most {MOST_TIMES}, got {max(numbers)}")
    increasing = list(block.widths) == sorted(set(block.widths))
    if not block.widths or not increasing or block.widths[0] < 1:
        raise AdaptError(
            f"{where}: widths must be positive and increasing, got {list(block.widths)}"
        )
    check_whole(f"{where}: the largest of widths", block.widths[-1])
