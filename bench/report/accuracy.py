"""What does each detector find, class by class, and which errors cost it how much AP?"""

from collections.abc import Mapping

import numpy as np

from bench.report.classes import MANY_CLASSES, class_tables
from bench.report.drawing import SIZE, Styles, legend, new_figure, svg
from bench.report.error_types import TYPES, ErrorCosts, error_costs
from bench.report.folder import Folder
from bench.report.found import Found
from bench.report.parts import Figure, Part, Section, Table

RECALLS = np.linspace(0, 1, 101)


def accuracy(folder: Folder, found: Found, drawn: Styles) -> Section:
    """Return precision over recall, AP per class and costs of errors."""
    parts: list[Part] = []
    if found.split:
        parts += [
            _curves(found, folder.chosen.name, drawn, at_half=at_half) for at_half in (True, False)
        ]
    parts += class_tables(folder, found.split)
    if found.split:
        costs = {name: error_costs(one) for name, one in found.matches.items()}
        parts += [_errors(costs, drawn), _error_table(costs)]
    missing = [found.why_not] if found.why_not else []
    return Section("accuracy", "What they find, and what they get wrong", (), parts, missing)


def _curves(found: Found, best: str, drawn: Styles, *, at_half: bool) -> Figure:
    figure, axes = new_figure()
    classes = 0
    for name, precision in found.precision.items():
        by_class = 100 * (precision[0] if at_half else precision.mean(axis=0))
        values, classes = by_class.mean(axis=1), by_class.shape[1]
        label = f"{name} (area {values.mean():.1f})"
        axes.plot(100 * RECALLS, values, color=drawn[name][0], label=label)
        if name == best and classes > MANY_CLASSES:
            low, high = np.quantile(by_class, (0.25, 0.75), axis=1)
            axes.fill_between(100 * RECALLS, low, high, color=drawn[name][0], alpha=0.15, lw=0)
    axes.set_xlabel("recall in %")
    axes.set_ylabel("precision in %")
    axes.set_ylim(0, 103)
    legend(axes, "lower left")
    which = "at an IoU of 0.5" if at_half else "mean over IoU 0.50 to 0.95"
    equal = "AP50" if at_half else "AP"
    band = f" Shaded: the middle half of the {classes} classes, of {best}."
    caption = f"Precision over recall, {which}: the area is {equal}."
    return Figure(svg(figure), caption + band * (classes > MANY_CLASSES))


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
