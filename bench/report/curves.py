"""How did the trainings and the search go?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adapt.errors import AdaptError
from bench.report.drawing import COLOURS, SOURCE, Styles, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.parts import Figure, Part, Section
from search.train.log import Entry, read_log

Logs = Mapping[str, Sequence[Entry]]
START = "start"  # of the training that all others of a run may start from


def curves(folder: Folder, drawn: Styles) -> Section:
    """Return losses and AP of all trainings, and cost and entropies of a search."""
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
    searched = folder.of_run("search/search.jsonl")
    log = _read(searched) if searched else []
    if log:
        parts += [_costs(log), _entropies(log)]
    else:
        missing.append(
            "There is no history of a search (search/search.jsonl): networks were chosen by "
            "scores, or elsewhere."
        )
    return Section("curves", "Trainings and search", (), parts, missing)


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


def _costs(log: Sequence[Entry]) -> Figure:
    figure, axes = new_figure()
    epochs = [entry["epoch"] for entry in log]
    axes.plot(epochs, [e["expected_cost"] for e in log], color=COLOURS[0], label="expected")
    axes.plot(epochs, [e["argmax_cost"] for e in log], "--", color=COLOURS[1], label="arg max")
    if (target := log[-1].get("target")) is not None:
        axes.axhline(target, color=SOURCE, linewidth=1, label="target")
    axes.set_xlabel("epoch of the search")
    axes.set_ylabel(f"cost of the detector in {log[0].get('cost_unit', '')}")
    legend(axes)
    return Figure(svg(figure), "What the search expects its network to cost, epoch by epoch.")


def _entropies(log: Sequence[Entry]) -> Figure:
    figure, axes = new_figure()
    for name, color in (("op_entropy", COLOURS[0]), ("width_entropy", COLOURS[1])):
        known = _only(log, name)
        values = [entry[name] for entry in known]
        label = name.replace("op_", "operations' ").replace("width_", "widths' ")
        axes.plot([entry["epoch"] for entry in known], values, color=color, label=label)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("epoch of the search")
    axes.set_ylabel("entropy (1: undecided, 0: decided)")
    legend(axes)
    return Figure(svg(figure), "How far the search decided on operations and widths.")
