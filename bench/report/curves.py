"""How did the trainings go?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.errors import AdaptError
from bench.report.drawing import SOURCE, Styles, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.parts import Figure, Part, Section
from search.train.log import Entry, read_log

Logs = Mapping[str, Sequence[Entry]]
START = "start"  # of the training that all others of a run may start from


def curves(folder: Folder, drawn: Styles) -> Section:
    """Return losses and AP of all trainings."""
    logs = _logs(folder)
    parts: list[Part] = []
    if logs:
        parts.append(_losses(logs, drawn))
    validated = {name: of for name, log in logs.items() if (of := _only(log, "val_ap"))}
    if validated:
        parts.append(_aps(validated, drawn))
    missing = []
    lost = [name for name in folder.names if name not in logs]
    if lost:
        missing.append(f"There is no training log (.training.jsonl) of {', '.join(lost)}.")
    return Section("curves", "How the trainings went", (), parts, missing)


def _logs(folder: Folder) -> Logs:
    paths = {
        entry.name: folder.beside(entry, f"{entry.artifact.stem}.training.jsonl")
        for entry in folder.detectors
    }
    paths[START] = folder.of_run(f"{START}.training.jsonl")
    return {name: log for name, path in paths.items() if path and (log := _read(path))}


def _read(path: Path) -> list[Entry]:
    """Read a log; lines that a killed training left unfinished are dropped.

    Raises:
        AdaptError: If it is no log.
    """
    entries = read_log(path)
    if path.stat().st_size and not (entries and all(_is_entry(one) for one in entries)):
        raise AdaptError(
            f"log {path} holds no reports of epochs; it is damaged: delete it, or run the training "
            "again"
        )
    return entries


def _is_entry(one: object) -> bool:
    return isinstance(one, dict) and "epoch" in one


def _only(log: Sequence[Entry], name: str) -> list[Entry]:
    """Return the entries that have a value."""
    return [entry for entry in log if entry.get(name) is not None]


def _losses(logs: Logs, drawn: Styles) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = new_figure()
    for name, log in logs.items():
        color, style = (drawn[name][0], "-") if name in drawn else (SOURCE, ":")
        known = _only(log, "loss")
        epochs = [entry["epoch"] for entry in known]
        axes.plot(epochs, [entry["loss"] for entry in known], style, color=color, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss, mean of an epoch")
    legend(axes, "upper right")
    shared = f" {START}: the training that all others continue." if START in logs else ""
    return Figure(svg(figure), f"Training losses.{shared} Of other inputs, losses differ too.")


def _aps(logs: Logs, drawn: Styles) -> Figure:
    figure, axes = new_figure()
    for name, log in logs.items():
        color, marker = drawn.get(name, (SOURCE, "."))
        epochs, aps = [e["epoch"] for e in log], [e["val_ap"] for e in log]
        style = "-" if name in drawn else ":"
        axes.plot(epochs, aps, style, color=color, marker=marker, markersize=5, label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("AP on held-out images in %")
    legend(axes, "lower right")
    return Figure(svg(figure), "AP on the images that are held out during training.")
