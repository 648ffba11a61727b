"""How are figures drawn for the page, so that they can be read on a phone too?"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (4.8, 3.4)  # inches: on the 360 pixels of a phone, letters are still 10 pixels high
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
SOURCE = "#444444"
LONGEST = 36  # letters of a legend
MARKERS = "oDsv^P"
Corner = Literal["best", "upper left", "upper right", "lower left", "lower right"]
Styles = Mapping[str, tuple[str, str]]  # name -> colour, marker


def styles(names: Sequence[str]) -> Styles:
    """Return colour and marker of every detector, the same in all figures; the source is grey."""
    others = [name for name in names if name != "source"]
    chosen = {
        name: (COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
        for place, name in enumerate(others)
    }
    return {**chosen, **({"source": (SOURCE, "X")} if "source" in names else {})}


def new_figure(size: tuple[float, float] = SIZE) -> "tuple[Figure, Axes]":
    """Return an empty figure and its axes with a light grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(axes: "Axes", place: Corner = "best") -> None:
    """Add a legend whose names are text, not formulas; of long ones, such as paths, the end."""
    added = axes.legend(frameon=False, fontsize=9, loc=place)
    added.set_in_layout(False)
    for text in added.get_texts():
        text.set_parse_math(False)
        if len(name := text.get_text()) > LONGEST:
            text.set_text("…" + name[1 - LONGEST :])


def svg(figure: "Figure", dots: int = 100) -> str:
    """Return a figure as SVG whose letters are text; the same figure gives the same SVG.

    Args:
        figure: The figure.
        dots: Pixels of an inch, for images in it.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "adapt"}):
        figure.savefig(file, format="svg", dpi=dots, metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
