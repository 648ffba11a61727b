"""How did a search decide, epoch by epoch? (costs, entropies, and every probability)"""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from bench.report.drawing import COLOURS, SIZE, SOURCE, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.parts import Figure, Part, Section
from search.supernet.history import Choice, History
from search.supernet.plot import heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

NONE = (
    "There is no history of a search (search/search.jsonl): networks were chosen by scores, or "
    "elsewhere; what they were chosen from stands with the networks."
)
HOW = (
    "A search gives every candidate width and operation a probability. In the maps of the blocks "
    "bright is probable, with the same colours in all of them, and the line follows the most "
    "probable candidate. An undecided choice keeps an entropy of 1."
)
HEIGHTS = (1.6, 1.6)  # inches: of the widths, of the operations
SMALL = 8  # letters, and names of candidates beside a map
NAMED = 3  # choices that a sentence names


def evolution(folder: Folder) -> Section:
    """Return cost, entropies and probabilities over the epochs of a search."""
    path = folder.of_run("search/search.jsonl")
    history = History.read(path) if path else None
    title = "How the search decided"
    if not history or not history.choices:
        return Section("search", title, missing=[NONE])
    parts: list[Part] = [_costs(history), _entropies(history)]
    parts += [_block(history, name, choices) for name, choices in history.blocks.items()]
    return Section("search", title, [HOW, last_change(history), *_warnings(history)], parts)


def last_change(history: History) -> str:
    """Say since which epoch the most probable network is the one that it ended with."""
    changed = {
        choice: int((choice.leaders != choice.leaders[-1]).nonzero()[0].max(initial=-1)) + 1
        for choice in history.choices
    }
    latest = max(changed.values())
    last = [choice for choice, at in changed.items() if at == latest]
    if latest <= history.first_step:
        return "The most probable network was the same after every epoch."
    named = [f"{one.block} {one.what} to {one.candidates[one.leaders[-1]]}" for one in last[:NAMED]]
    more = [f"{len(last) - NAMED} more"] if len(last) > NAMED else []
    return (
        f"The most probable network changed last in epoch {history.epochs[latest]:g} of "
        f"{history.epochs[-1]:g} ({', '.join(named + more)})."
    )


def _warnings(history: History) -> list[str]:
    """Return what the search warned of at its end, as sentences."""
    warnings: list[str] = history.entries[-1].get("warnings", [])
    return [f"{warning[:1].upper()}{warning[1:]}." for warning in warnings]


def _costs(history: History) -> Figure:
    figure, axes = new_figure()
    last = history.entries[-1]
    axes.plot(history.epochs, history.values("expected_cost"), color=COLOURS[0], label="expected")
    axes.plot(
        history.epochs, history.values("argmax_cost"), "--", color=COLOURS[1], label="arg max"
    )
    if (target := last.get("target")) is not None:
        axes.axhline(target, color=SOURCE, linewidth=1, label="target")
    axes.set_xlabel("epoch of the search")
    axes.set_ylabel(f"cost of the detector in {last.get('cost_unit', '')}")
    legend(axes)
    return Figure(svg(figure), "What the search expects its network to cost, epoch by epoch.")


def _entropies(history: History) -> Figure:
    figure, axes = new_figure()
    for name, label, color in (
        ("op_entropy", "operations' entropy", COLOURS[0]),
        ("width_entropy", "widths' entropy", COLOURS[1]),
    ):
        axes.plot(history.epochs, history.values(name), color=color, label=label)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("epoch of the search")
    axes.set_ylabel("entropy (1: undecided, 0: decided)")
    legend(axes)
    return Figure(svg(figure), "How far the search decided on operations and widths.")


def _block(history: History, name: str, choices: Sequence[Choice]) -> Figure:
    """Draw the widths and all entropies, and below them the operations side by side."""
    from matplotlib.figure import Figure as Drawing

    width, *operations = choices
    figure = Drawing(figsize=(SIZE[0], sum(HEIGHTS)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=HEIGHTS, squeeze=False).flat
    widths, entropies = above.subplots(1, 2, width_ratios=(2, 1))
    image = heat_map(widths, history, width, size=SMALL, most=SMALL)
    widths.set_title("channels", fontsize=9)
    scale = figure.colorbar(image, ax=widths, ticks=(0, 0.05, 0.2, 0.5, 1), pad=0.02)
    scale.ax.tick_params(labelsize=SMALL)
    scale.ax.set_yticklabels(("0", "0.05", "0.2", "0.5", "1"))
    _draw_entropies(entropies, history, choices)
    _draw_operations(below, history, operations)
    caption = (
        f"{name.capitalize()}: probability of its channels and operations by epoch, and their "
        "entropies: black the channels', coloured the operations'."
    )
    return Figure(svg(figure, dots=144), caption)


def _draw_entropies(axes: "Axes", history: History, choices: Sequence[Choice]) -> None:
    for choice, color in zip(choices, cycle((SOURCE, *COLOURS)), strict=False):
        axes.plot(history.epochs, choice.entropies, color=color)
    axes.set_ylim(0, 1.05)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.3)
    axes.set_title("entropy", fontsize=9)


def _draw_operations(figure: "SubFigure", history: History, operations: Sequence[Choice]) -> None:
    """Draw them with the same rows: those that cannot be skipped leave the last one empty."""
    row = figure.subplots(1, len(operations), squeeze=False, sharey=True)[0]
    for axes, choice in zip(row, operations, strict=True):
        heat_map(axes, history, choice, size=SMALL, most=SMALL)
        axes.set_title(choice.what.replace("op ", "operation "), fontsize=9)
    names = max((choice.candidates for choice in operations), key=len)
    row[0].set_yticks(range(len(names)), names)
    row[0].set_ylim(-0.5, len(names) - 0.5)
