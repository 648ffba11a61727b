"""What defines one network? (its layers, or what it picks from a search space)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.artifacts import (
    LATER,
    check_header,
    content_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.errors import AdaptError
from adapt.space import (
    SKIP,
    BlockSpace,
    Operation,
    SearchSpace,
    check_first_width,
    check_taps,
    check_whole,
)
from adapt.traits import Activation, OperationTraits, traits_of


@dataclass(frozen=True)
class Block:
    """One block of a network.

    Attributes:
        stride: Stride of the first operation.
        width: Output channels of every operation.
        ops: The operations in order; skipped ones are left out.
    """

    stride: int
    width: int
    ops: tuple[Operation, ...]


@dataclass(frozen=True)
class OperationShape:
    """Channels and geometry of one operation, without its resolution."""

    c_in: int
    c_out: int
    kernel: int
    expansion: float
    stride: int
    residual: bool


@dataclass(frozen=True)
class MBConvShape(OperationShape):
    """Channels and geometry of one MBConv, without its resolution."""

    activation: Activation = field(default="relu6", kw_only=True, metadata=LATER)
    se: bool = field(default=False, kw_only=True, metadata=LATER)

    @property
    def hidden(self) -> int:
        """Channels of the depthwise convolution."""
        return hidden_width(self.c_in, self.expansion)

    @property
    def squeezed(self) -> int:
        """Channels between the two layers of squeeze-excitation."""
        return squeezed_width(self.hidden)

    @property
    def expands(self) -> bool:
        """Whether a 1x1 convolution comes before the depthwise one."""
        return self.expansion != 1


@dataclass(frozen=True)
class BottleneckShape(OperationShape):
    """Channels and geometry of one bottleneck, without its resolution.

    One without a residual projects its input in the residual's place.
    """

    activation: Activation = field(default="relu", kw_only=True, metadata=LATER)

    @property
    def hidden(self) -> int:
        """Channels that the k x k convolution reads and writes."""
        return hidden_width(self.c_out, self.expansion)


Shape = MBConvShape | BottleneckShape


def hidden_width(channels: int, expansion: float) -> int:
    """Return the channels that a number of channels is expanded to, or reduced.

    An expansion that is no whole number gives the nearest multiple of 8, as MobileNetV3 rounds:
    other widths are slow on runtimes that compute in blocks of channels.
    """
    if expansion == int(expansion):
        return channels * int(expansion)
    return max(8, int(channels * expansion / 8 + 0.5) * 8)


def squeezed_width(hidden: int) -> int:
    """Return a quarter as a multiple of 8, but not less than 0.9 of it (MobileNetV3)."""
    quarter = hidden // 4
    width = max(8, (quarter + 4) // 8 * 8)
    return width if width >= 0.9 * quarter else width + 8


def shape_of(
    op: Operation, c_in: int, c_out: int, *, stride: int, residual: bool, traits: OperationTraits
) -> Shape:
    """Return the shape that an operation has between two widths."""
    geometry = c_in, c_out, op.kernel, op.expansion, stride, residual
    if traits.form == "bottleneck":
        return BottleneckShape(*geometry, activation=traits.activation)
    return MBConvShape(*geometry, activation=traits.activation, se=op.se)


@dataclass(frozen=True)
class Architecture:
    """A complete backbone; enough to build it without the search space.

    Attributes:
        source: Backbone whose pretrained parameters fit it.
        stem_width: Channels of the stem convolution (stride 2).
        first_width: Channels of the fixed first block, or of the pooling in its place.
        taps: Blocks, counted from 1, that feed the feature pyramid.
        blocks: The blocks in order.
    """

    source: str
    stem_width: int
    first_width: int
    taps: tuple[int, ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return " | ".join(f"{b.width}: {' '.join(map(str, b.ops))}" for b in self.blocks)

    def layers(self) -> list[list[Shape]]:
        """Return the shapes of the operations of every block, in order."""
        shapes = []
        c_in, traits = self.first_width, traits_of(self.source)
        for number, block in enumerate(self.blocks):
            shapes.append(
                [
                    shape_of(
                        op,
                        c_in if position == 0 else block.width,
                        block.width,
                        stride=block.stride if position == 0 else 1,
                        # A block's first operation has none, also where its widths agree: in the
                        # supernet it maps between the widest candidates of two blocks.
                        residual=position > 0,
                        traits=traits.operations(number),
                    )
                    for position, op in enumerate(block.ops)
                ]
            )
            c_in = block.width
        return shapes

    @property
    def tap_widths(self) -> tuple[int, ...]:
        """Channels of the tapped blocks."""
        return tuple(self.blocks[tap - 1].width for tap in self.taps)

    def check_fits(self, space: SearchSpace, path: Path | None = None) -> None:
        """Check that ``space`` contains this network.

        Raises:
            AdaptError: With the first difference and the fix.
        """
        name = f"architecture {path}" if path else "the architecture"
        fixed = ("source", "stem_width", "first_width", "taps")
        differing = [f for f in fixed if getattr(self, f) != getattr(space, f)]
        if len(self.blocks) != len(space.blocks):
            differing.append("number of blocks")
        if differing:
            raise AdaptError(
                f"{name} is of another search space than {space.name!r}: its {differing[0]} "
                "differs; pass the space it was searched in"
            )
        for number, (block, allowed) in enumerate(zip(self.blocks, space.blocks, strict=True), 1):
            reason = _misfit(block, allowed)
            if reason:
                raise AdaptError(
                    f"{name} is of another search space than {space.name!r}: block {number} has "
                    f"{reason}; pass the space and width grid it was searched in"
                )

    @property
    def hash(self) -> str:
        """16 hex digits that identify the network."""
        return content_hash(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "source": self.source,
            "stem_width": self.stem_width,
            "first_width": self.first_width,
            "taps": list(self.taps),
            "blocks": [
                {"stride": b.stride, "width": b.width, "ops": [str(op) for op in b.ops]}
                for b in self.blocks
            ],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Architecture":
        """Read what :meth:`to_dict` wrote.

        Raises:
            LookupError: If a field is missing.
            TypeError: If there is no list where there must be one.
            ValueError: If a value is wrong, a block is empty or an operation malformed.
        """
        blocks = tuple(
            Block(
                check_whole("stride", b["stride"], most=2),
                check_whole("width", b["width"]),
                tuple(Operation.parse(str(op)) for op in b["ops"]),
            )
            for b in content["blocks"]
        )
        if any(not block.ops or SKIP in block.ops for block in blocks):
            raise AdaptError("every block needs at least one operation and lists no 'skip'")
        architecture = cls(
            source=typed(str, content["source"]),
            stem_width=check_whole("stem_width", content["stem_width"]),
            first_width=check_whole("first_width", content["first_width"]),
            taps=typed(tuple[int, ...], content["taps"]),
            blocks=blocks,
        )
        source = architecture.source
        check_first_width(source, architecture.stem_width, architecture.first_width)
        check_taps(source, architecture.taps, [block.stride for block in blocks])
        squeezed = [op for block in blocks for op in block.ops if op.se]
        if squeezed and traits_of(source).form == "bottleneck":
            raise AdaptError(
                f"operation {squeezed[0]} has squeeze-excitation, which the bottlenecks of "
                f"{source} do not have"
            )
        return architecture

    def save(self, path: Path, **provenance: Any) -> None:
        """Write an architecture file; its header states ``provenance``."""
        write_json(path, header("architecture", **provenance, architecture=self.to_dict()))

    @classmethod
    def load(cls, path: Path) -> "Architecture":
        """Read an architecture file.

        Raises:
            AdaptError: If the file is missing, of another kind, or incomplete.
        """
        content = check_header(read_json(path, "architecture"), "architecture", path)
        with parsing("architecture", path, "pass a file that `adapt derive` wrote"):
            return cls.from_dict(content["architecture"])


@dataclass(frozen=True)
class Choices:
    """A network of a search space as indices of the space's candidates.

    Attributes:
        ops: Index of the candidate operation per block and position.
        widths: Index of the candidate width per block.
    """

    ops: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, ops: Sequence[Sequence[int]], widths: Sequence[int]) -> "Choices":
        """Return the choices that any sequences of indices stand for."""
        return cls(tuple(map(tuple, ops)), tuple(widths))

    @classmethod
    def found(cls, architecture: Architecture, space: SearchSpace) -> "Choices | None":
        """Return the indices of a network's choices; operations that it lacks are the last ones.

        Returns:
            The indices, or None if the network has something that is no candidate of ``space``.
        """
        ops, widths = [], []
        if len(architecture.blocks) != len(space.blocks):
            return None
        for block, allowed in zip(architecture.blocks, space.blocks, strict=True):
            missing = (SKIP,) * (allowed.num_ops - len(block.ops))
            candidates = [allowed.candidates(position) for position in range(allowed.num_ops)]
            named = list(zip((*block.ops, *missing), candidates, strict=False))
            if _misfit(block, allowed) or any(op not in known for op, known in named):
                return None
            ops.append([known.index(op) for op, known in named])
            widths.append(allowed.widths.index(block.width))
        return cls.of(ops, widths)

    def architecture(self, space: SearchSpace) -> Architecture:
        """Return the network that these indices pick from ``space``."""
        blocks = []
        for block, chosen, width in zip(space.blocks, self.ops, self.widths, strict=True):
            picked = [block.candidates(position)[index] for position, index in enumerate(chosen)]
            kept = tuple(op for op in picked if op != SKIP)
            blocks.append(Block(block.stride, block.widths[width], kept))
        return Architecture(
            space.source, space.stem_width, space.first_width, space.taps, tuple(blocks)
        )


def first_shape(network: Architecture | SearchSpace) -> MBConvShape | None:
    """Return the shape of the fixed first block: kernel 3, expansion 1, stride 1.

    None where pooling stands in its place.
    """
    traits = traits_of(network.source)
    if traits.pooled:
        return None
    return MBConvShape(
        network.stem_width,
        network.first_width,
        kernel=3,
        expansion=1,
        stride=1,
        residual=traits.first_residual and network.stem_width == network.first_width,
        activation=traits.first,
    )


def _misfit(block: Block, allowed: BlockSpace) -> str | None:
    if block.stride != allowed.stride:
        return f"stride {block.stride}, not {allowed.stride}"
    if block.width not in allowed.widths:
        return f"width {block.width}, which is no candidate"
    if len(block.ops) > allowed.num_ops:
        return f"{len(block.ops)} operations, more than {allowed.num_ops}"
    unknown = [op for op in block.ops if op not in allowed.candidates(0)]
    return f"operation {unknown[0]}, which is no candidate" if unknown else None
