"""How large does a detector see the boxes of a data set, beside its anchors? (a figure)"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import RATIOS
from adapt.detector.objects import (
    MATCH,
    Floats,
    Objects,
    anchor_recall,
    anchor_shapes,
    best_anchor,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALVES = 8  # bars per doubling of the side


@dataclass(frozen=True, eq=False)
class FittedBoxes:
    """Boxes in a detector's input, and anchors.

    Attributes:
        size: The input.
        boxes: ``float64[M, 2]``, height and width of every box in it.
        anchor_size: Side of the smallest anchor.
        recall: Share of the boxes that some anchor overlaps with enough to learn them.
    """

    size: InputSize
    boxes: Floats
    anchor_size: int
    recall: float

    @classmethod
    def of(cls, split: CocoSplit, size: InputSize, anchor_size: int = 0) -> "FittedBoxes":
        """Return the boxes of a split.

        Args:
            split: Images and boxes; it has some.
            size: The input.
            anchor_size: Side of the smallest anchor; 0 for the one of the highest recall.
        """
        boxes = Objects.of(split).fitted(size)
        anchor = anchor_size or best_anchor(boxes)[0]
        return cls(size, boxes, anchor, anchor_recall(boxes, anchor))

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON content."""
        return {
            "input": f"{self.size.height}x{self.size.width}",
            "anchor_size": self.anchor_size,
            "recall": round(self.recall, 4),
        }

    @property
    def caption(self) -> str:
        """What :meth:`figure` shows."""
        return (
            f"Sides of the boxes of the training images in an input of {self.size.height}x"
            f"{self.size.width}. Lines are the sides of the anchors on each level of the pyramid, "
            f"for detector.anchor_size = {self.anchor_size}: of {self.recall:.1%} of the boxes "
            f"they overlap at least {MATCH:.0%}, wherever they stand."
        )

    def figure(self) -> "Figure":
        """Draw the sides of all boxes, and the anchors."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter

        sides = np.sqrt(self.boxes.prod(1)).clip(min=1)
        anchors = np.sqrt(anchor_shapes(self.anchor_size).prod(-1))
        anchors = anchors.reshape(len(anchors), len(RATIOS), -1).mean(1)  # by scale
        low, high = (np.log2([values.min(), values.max()]) for values in (sides, anchors))
        first, last = np.floor(min(low[0], high[0])), np.ceil(max(low[1], high[1]))
        edges = 2 ** np.linspace(first, last, int(last - first) * HALVES + 1)
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.hist(sides, edges.tolist(), color="tab:blue", alpha=0.7)
        for level, of_level in enumerate(anchors):
            for side in of_level:
                axes.axvline(side, color=f"C{level + 1}", linewidth=1)
            axes.text(
                of_level.min(),
                1.02,
                f"P{level + 3}",
                color=f"C{level + 1}",
                transform=axes.get_xaxis_transform(),
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("pixels of the input (root of the area)")
        axes.set_ylabel("boxes")
        return figure
