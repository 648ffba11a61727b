"""Of which parts does a section of the page consist?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Table:
    """A table whose first column is text, the others numbers or short words.

    Attributes:
        titles: Titles of the columns.
        rows: Cells, as many in each row as there are titles.
        note: A sentence below it.
        strong: Which row stands out; none if None.
        long: Whether it is folded up at first.
    """

    kind: ClassVar[str] = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    strong: int | None = None
    long: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure as SVG, with the sentence below it."""

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str


@dataclass(frozen=True)
class Commands:
    """Command lines to copy."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class BlockRow:
    """A block of a network beside the source's.

    Attributes:
        number: Its number, from 1; 0 is the fixed start of the network.
        width: Output channels.
        source_width: Those of the source's block; 0 if there is no source.
        ops: Kernel, expansion and squeeze-excitation of every operation, such as ``(3, 6, False)``.
        skipped: How many operations the source's block has more.
        stride: Stride of the block.
    """

    number: int
    width: int
    source_width: int
    ops: Sequence[tuple[int, float, bool]]
    skipped: int
    stride: int


@dataclass(frozen=True)
class Network:
    """A network as a diagram of its blocks.

    Attributes:
        name: Name of the detector.
        about: Input, pyramid and heads.
        blocks: Its blocks.
        widest: The widest block of all networks on the page, to which bars are drawn.
    """

    kind: ClassVar[str] = "network"
    name: str
    about: str
    blocks: Sequence[BlockRow]
    widest: int


@dataclass(frozen=True)
class Mark:
    """A box in an image.

    Attributes:
        kind: ``right``, ``wrong`` or ``missed``.
        x: Left edge in pixels of the image.
        y: Upper edge.
        width: Pixels.
        height: Pixels.
        label: Class, and the score of a detection.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Example:
    """An image with boxes.

    Attributes:
        jpeg: The image as a data URL.
        width: Pixels of the image that the boxes refer to.
        height: Pixels.
        marks: The boxes.
        caption: Its file, and how well detections and objects agree.
    """

    jpeg: str
    width: int
    height: int
    marks: Sequence[Mark]
    caption: str


@dataclass(frozen=True)
class Examples:
    """Images side by side, below a title."""

    kind: ClassVar[str] = "examples"
    title: str
    images: Sequence[Example]


Part = Table | Figure | Commands | Network | Examples


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: What links to it lead to.
        title: Its title.
        lead: Sentences at its start.
        parts: What it shows.
        missing: What it cannot show and why, in sentences.
    """

    name: str
    title: str
    lead: Sequence[str] = ()
    parts: Sequence[Part] = ()
    missing: Sequence[str] = ()
