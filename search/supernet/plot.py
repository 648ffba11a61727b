"""How is a search drawn? (`search.png`: costs, losses, entropies, probabilities)"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.artifacts import atomic_path
from search.derive.decision import UNDECIDED, undecided_entry
from search.supernet.history import Choice, History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LEADER = "#D55E00"  # stands out from every colour of the map


def plot_search(log: Path, path: Path) -> None:
    """Draw cost and target, losses, entropies, and every probability over the epochs.

    Args:
        log: ``search.jsonl``.
        path: PNG file to write.

    Raises:
        AdaptError: If the log is missing or damaged.
    """
    from matplotlib.figure import Figure

    history = History.read(log)
    if not history.choices:
        return
    blocks = history.blocks
    columns = max(map(len, blocks.values()))
    figure = Figure(figsize=(3.4 * columns, 3 + 2.1 * len(blocks)), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(3, 2.1 * len(blocks)), squeeze=False).flat
    _curves(top.subplots(1, 3), history)
    _probabilities(below, history, columns)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _curves(axes: "Sequence[Axes]", history: History) -> None:
    last = history.entries[-1]
    unit = last["cost_unit"].replace("GMAdds", "10$^9$ multiply-adds")
    cost, loss, entropy = axes
    _line(cost, history, "expected_cost", "expected")
    _line(cost, history, "argmax_cost", "arg max", linestyle="--")
    if last["target"] is not None:
        cost.axhline(last["target"], color="tab:red", label="target", linewidth=1)
        multiplier = cost.twinx()
        _line(multiplier, history, "cost_weight", "λ", color="tab:gray", linestyle=":")
        multiplier.set_yscale("log")
        multiplier.set_ylabel("λ (dotted)")
    cost.set_ylabel(unit)
    cost.set_title("Cost of the detector")
    _line(loss, history, "weight_loss", "weights (trainA)")
    _line(loss, history, "arch_loss", "architecture (trainB, with cost term)")
    loss.set_title("Loss, mean of an epoch")
    _line(entropy, history, "op_entropy", "operations")
    _line(entropy, history, "width_entropy", "widths")
    entropy.set_ylim(0, 1.05)
    entropy.axhline(UNDECIDED, color="tab:gray", linestyle=":", linewidth=1)
    entropy.set_title("Entropy (1: undecided, 0: decided)")
    if undecided_entry(last):
        entropy.set_title("The search did not decide (entropy; 0: decided)", color="tab:red")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)


def _line(axes: "Axes", history: History, name: str, label: str, **style: Any) -> None:
    points = zip(history.epochs, history.values(name), strict=True)
    known = [(epoch, value) for epoch, value in points if value is not None]
    if known:
        marker = "o" if len(known) < 30 else None
        axes.plot(*zip(*known, strict=True), label=label, marker=marker, markersize=3, **style)


def _probabilities(figure: Any, history: History, columns: int) -> None:
    """Draw one heat map per choice, those of a block in a row."""
    grid = figure.subplots(len(history.blocks), columns, squeeze=False)
    for row, choices in zip(grid, history.blocks.values(), strict=True):
        for axes in row[len(choices) :]:
            axes.set_visible(False)
        for axes, choice in zip(row, choices, strict=False):
            image = heat_map(axes, history, choice)
            axes.set_title(f"{choice.block}, {choice.what}", fontsize=9)
    figure.suptitle("Probability of every width and operation over the epochs", fontsize=11)
    figure.colorbar(image, ax=grid, location="right", aspect=60, label="probability")


def heat_map(
    axes: "Axes", history: History, choice: Choice, *, size: float = 7, most: int = 10
) -> "AxesImage":
    """Draw candidates by epochs, bright is probable; a line follows the most probable one.

    The colours of all choices are the same, so that an undecided one does not look decided.

    Args:
        axes: Where to draw.
        history: What the choice is of.
        choice: The choice.
        size: Of letters.
        most: How many names of candidates have room.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    epochs, names = history.epochs, choice.candidates
    image = axes.imshow(
        choice.probabilities.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="viridis",
        norm=PowerNorm(0.5, 0, 1),  # of 37 candidates, an undecided one has 0.03
        extent=(epochs[0] - 0.5, epochs[-1] + 0.5, -0.5, len(names) - 0.5),
    )
    first = history.first_step  # before it, all are equal but for chance
    leaders = choice.leaders[first:]
    axes.plot(epochs[first:], leaders, drawstyle="steps-mid", color=LEADER, linewidth=1.2)
    shown = range(0, len(names), -(-len(names) // most))
    axes.set_yticks(list(shown), [names[i] for i in shown], fontsize=size)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(axis="x", labelsize=size)
    return image
