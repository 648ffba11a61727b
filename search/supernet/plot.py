"""How is a search drawn? (`search.png`: costs, losses, entropies, probabilities)"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.artifacts import atomic_path
from search.derive.decision import UNDECIDED, undecided_entry
from search.train.log import Entry, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_search(log: Path, path: Path) -> None:
    """Draw cost and target, losses, entropies, and every probability over the epochs.

    Args:
        log: ``search.jsonl``.
        path: PNG file to write.

    Raises:
        AdaptError: If the log is missing or damaged.
    """
    from matplotlib.figure import Figure

    entries = read_log(log)
    if not entries:
        return
    blocks = entries[0]["probabilities"]
    columns = max(len(groups) for groups in blocks.values())
    figure = Figure(figsize=(3.4 * columns, 3 + 2.1 * len(blocks)), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(3, 2.1 * len(blocks)), squeeze=False).flat
    _curves(top.subplots(1, 3), entries)
    _probabilities(below, entries, columns)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _curves(axes: "Sequence[Axes]", entries: list[Entry]) -> None:
    epochs = [entry["epoch"] for entry in entries]
    unit = entries[0]["cost_unit"].replace("GMAdds", "10$^9$ multiply-adds")
    cost, loss, entropy = axes
    _line(cost, epochs, entries, "expected_cost", "expected")
    _line(cost, epochs, entries, "argmax_cost", "arg max", linestyle="--")
    if entries[-1]["target"] is not None:
        cost.axhline(entries[-1]["target"], color="tab:red", label="target", linewidth=1)
        multiplier = cost.twinx()
        _line(multiplier, epochs, entries, "cost_weight", "λ", color="tab:gray", linestyle=":")
        multiplier.set_yscale("log")
        multiplier.set_ylabel("λ (dotted)")
    cost.set_ylabel(unit)
    cost.set_title("Cost of the detector")
    _line(loss, epochs, entries, "weight_loss", "weights (trainA)")
    _line(loss, epochs, entries, "arch_loss", "architecture (trainB, with cost term)")
    loss.set_title("Loss, mean of an epoch")
    _line(entropy, epochs, entries, "op_entropy", "operations")
    _line(entropy, epochs, entries, "width_entropy", "widths")
    entropy.set_ylim(0, 1.05)
    entropy.axhline(UNDECIDED, color="tab:gray", linestyle=":", linewidth=1)
    entropy.set_title("Entropy (1: undecided, 0: decided)")
    if undecided_entry(entries[-1]):
        entropy.set_title("The search did not decide (entropy; 0: decided)", color="tab:red")
    for panel in axes:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)


def _line(
    axes: "Axes", epochs: list[float], entries: list[Entry], name: str, label: str, **style: Any
) -> None:
    points = [(e, entry[name]) for e, entry in zip(epochs, entries, strict=True)]
    known = [(e, value) for e, value in points if value is not None]
    if known:
        marker = "o" if len(known) < 30 else None
        axes.plot(*zip(*known, strict=True), label=label, marker=marker, markersize=3, **style)


def _probabilities(figure: Any, entries: list[Entry], columns: int) -> None:
    """Draw one heat map per block and group: candidates by epochs, bright is probable."""
    blocks = entries[0]["probabilities"]
    grid = figure.subplots(len(blocks), columns, squeeze=False)
    for row, (block, groups) in zip(grid, blocks.items(), strict=True):
        for axes in row[len(groups) :]:
            axes.set_visible(False)
        for axes, (group, candidates) in zip(row, groups.items(), strict=False):
            _heat_map(axes, entries, block, group, list(candidates))
    figure.suptitle("Probability of every width and operation over the epochs", fontsize=11)


def _heat_map(axes: "Axes", entries: list[Entry], block: str, group: str, names: list[str]) -> None:
    rows = [[entry["probabilities"][block][group][name] for entry in entries] for name in names]
    first, last = entries[0]["epoch"], entries[-1]["epoch"]
    axes.imshow(
        rows,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="viridis",
        vmin=0,
        extent=(first - 0.5, last + 0.5, -0.5, len(names) - 0.5),
    )
    shown = range(0, len(names), -(-len(names) // 10))  # 37 widths would overlap
    axes.set_yticks(list(shown), [names[i] for i in shown], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(f"{block}, {group}", fontsize=9)
