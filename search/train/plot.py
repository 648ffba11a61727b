"""How is a fine-tuning drawn? (`.training.png`: losses, learning rate and AP over the epochs)"""

from pathlib import Path
from typing import TYPE_CHECKING

from adapt.artifacts import atomic_path
from search.train.log import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {  # of the losses
    "loss": "sum",
    "classification": "classes",
    "bbox_regression": "boxes",
    "bbox_ctrness": "centerness",
    "objectness": "objectness",
    "proposal_regression": "proposals",
    "teacher": "teacher",
}


def plot_training(log: Path, path: Path) -> None:
    """Draw losses, learning rate, and the AP on held-out images where it was measured.

    Args:
        log: ``.training.jsonl``.
        path: PNG file to write.

    Raises:
        AdaptError: If the log is missing.
    """
    from matplotlib.figure import Figure

    entries = read_log(log)
    epochs = [entry["epoch"] for entry in entries]
    marker = "o" if len(epochs) < 30 else None
    aps = {entry["epoch"]: entry["val_ap"] for entry in entries if "val_ap" in entry}
    figure = Figure(figsize=(12 if aps else 9, 3.2), layout="constrained")
    loss, *others, rate = figure.subplots(
        1, 3 if aps else 2, width_ratios=(2, *(2,) * bool(aps), 1)
    )
    for name, label in LABELS.items():
        if name in entries[0]:
            values = [entry[name] for entry in entries]
            loss.plot(epochs, values, label=label, marker=marker, markersize=3)
    loss.set_title("Loss, mean of an epoch")
    loss.set_yscale("log")
    loss.legend()
    rate.plot(epochs, [entry["lr"] for entry in entries], marker=marker, markersize=3)
    rate.set_title("Learning rate")
    for ap in others:
        _draw_ap(ap, aps)
    for axes in (loss, *others, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


def _draw_ap(axes: "Axes", aps: dict[float, float]) -> None:
    """Draw percent of AP by epoch; the best is marked, of equal ones the last, which is kept."""
    axes.plot(list(aps), list(aps.values()), marker="o", markersize=3)
    epoch = max(aps, key=lambda one: (aps[one], one))
    axes.plot([epoch], [aps[epoch]], marker="*", markersize=11, linestyle="none", color="tab:red")
    axes.annotate(
        f"{aps[epoch]:.1f}", (epoch, aps[epoch]), xytext=(0, -14), textcoords="offset points"
    )
    axes.set_title("AP on held-out images, in percent")
    axes.set_ylim(bottom=0)
