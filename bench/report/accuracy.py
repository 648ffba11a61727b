"""What does each detector find, class by class, and which errors cost it how much AP?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.networks.measure import Entry
from bench.report.drawing import SIZE, Styles, legend, new_figure, svg
from bench.report.error_types import TYPES, ErrorCosts, error_costs
from bench.report.folder import Folder
from bench.report.found import Found
from bench.report.matches import matches
from bench.report.parts import Figure, Part, Section, Table

MANY_CLASSES = 20  # of which a table is folded up
RECALLS = np.linspace(0, 1, 101)


def accuracy(folder: Folder, found: Found, drawn: Styles) -> Section:
    """Return precision over recall, AP per class and costs of errors."""
    parts: list[Part] = []
    if found.split:
        curves = {name: _precision(one) for name, one in found.evaluations.items()}
        parts += [_curves(curves, drawn, at_half=True), _curves(curves, drawn, at_half=False)]
    parts.append(_classes(folder.detectors))
    if found.split:
        costs = {name: error_costs(matches(one)) for name, one in found.evaluations.items()}
        parts += [_errors(costs, drawn), _error_table(costs)]
    missing = [found.why_not] if found.why_not else []
    return Section("accuracy", "What they find, and what they get wrong", (), parts, missing)


def _precision(evaluation: Any) -> NDArray[np.float64]:
    """Return precision by IoU and recall, ``float64[10, 101]``, the mean of all classes."""
    by_class = evaluation.eval["precision"][:, :, :, 0, -1]
    known = (by_class > -1).all(axis=(0, 1))  # pycocotools writes -1 of classes without objects
    mean: NDArray[np.float64] = by_class[:, :, known].mean(axis=2)
    return mean


def _curves(curves: Mapping[str, NDArray[np.float64]], drawn: Styles, *, at_half: bool) -> Figure:
    figure, axes = new_figure()
    for name, precision in curves.items():
        values = 100 * (precision[0] if at_half else precision.mean(axis=0))
        label = f"{name} (area {values.mean():.1f})"
        axes.plot(100 * RECALLS, values, color=drawn[name][0], label=label)
    axes.set_xlabel("recall in %")
    axes.set_ylabel("precision in %")
    axes.set_ylim(0, 103)
    legend(axes, "lower left")
    which = "at an IoU of 0.5" if at_half else "mean over IoU 0.50 to 0.95"
    equal = "AP50" if at_half else "AP"
    return Figure(svg(figure), f"Precision over recall, {which}: the area is {equal}.")


def _classes(entries: Sequence[Entry]) -> Table:
    """Return AP of every class; classes without objects are left out."""
    names = [name for name, ap in entries[0].metrics.per_class.items() if ap is not None]
    rows = [[name, *(_percent(e.metrics.per_class.get(name)) for e in entries)] for name in names]
    sizes: dict[str, list[float | None]] = {
        "small objects": [e.metrics.ap_small for e in entries],
        "medium objects": [e.metrics.ap_medium for e in entries],
        "large objects": [e.metrics.ap_large for e in entries],
        "all": [e.metrics.ap for e in entries],
    }
    rows += [[name, *map(_percent, values)] for name, values in sizes.items()]
    return Table(
        ("AP of", *(entry.name for entry in entries)),
        rows,
        "Small is below 32 x 32 pixels of the image, large above 96 x 96.",
        strong=len(rows) - 1,
        long=len(names) > MANY_CLASSES,
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _errors(costs: Mapping[str, ErrorCosts], drawn: Styles) -> Figure:
    figure, axes = new_figure((SIZE[0], 1.2 + 0.4 * len(TYPES)))
    height, places = 0.8 / len(costs), np.arange(len(TYPES))
    for number, (name, of) in enumerate(costs.items()):
        values = [100 * of.costs[kind] for kind in TYPES]
        axes.barh(places + number * height, values, height, color=drawn[name][0], label=name)
    axes.set_yticks(places + 0.4 - height / 2, list(TYPES))
    axes.invert_yaxis()
    axes.set_xlabel("AP50 that errors of this type cost, in points")
    legend(axes)
    caption = (
        "By how much AP50 would rise if all errors of one type were corrected, each type alone "
        "(after TIDE, Bolya et al. 2020); they do not add up to what is missing."
    )
    return Figure(svg(figure), caption)


def _error_table(costs: Mapping[str, ErrorCosts]) -> Table:
    rows = [
        [name, f"{100 * of.ap50:.1f}", *(f"{100 * of.costs[kind]:.1f}" for kind in TYPES)]
        for name, of in costs.items()
    ]
    meant = "; ".join(f"{kind}: {what}" for kind, what in TYPES.items())
    return Table(("detector", "AP50", *TYPES), rows, f"Points of AP50. {meant}.")
