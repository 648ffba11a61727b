"""How is a fine-tuning drawn? (`.training.png`: losses and learning rate over the epochs)"""

from pathlib import Path

from adapt.artifacts import atomic_path
from search.train.log import read_log


def plot_training(log: Path, path: Path) -> None:
    """Draw losses and learning rate.

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
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss, rate = figure.subplots(1, 2, width_ratios=(2, 1))
    labels = {"loss": "sum", "classification": "classes", "bbox_regression": "boxes"}
    for name, label in labels.items():
        values = [entry[name] for entry in entries]
        loss.plot(epochs, values, label=label, marker=marker, markersize=3)
    loss.set_title("Loss, mean of an epoch")
    loss.set_yscale("log")
    loss.legend()
    rate.plot(epochs, [entry["lr"] for entry in entries], marker=marker, markersize=3)
    rate.set_title("Learning rate")
    for axes in (loss, rate):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
