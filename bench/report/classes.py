"""Which AP does every class reach, and which classes are weak?"""

from collections.abc import Iterator, Sequence

import numpy as np

from adapt.data.coco import CocoSplit
from bench.networks.measure import Entry
from bench.report.folder import Folder
from bench.report.parts import Table

MANY_CLASSES = 20  # whose table is folded up, and of which some are shown beside
SHOWN = 8  # of the weakest ones, and of the changed ones


def class_tables(folder: Folder, split: CocoSplit | None) -> list[Table]:
    """Return AP by size and class; of many classes the weakest and the most changed ones first.

    Args:
        folder: The report.
        split: Its images; None if they are gone.
    """
    entries, best, source = folder.detectors, folder.chosen, folder.source
    classes = [name for name, ap in best.metrics.per_class.items() if ap is not None]
    many, counts = len(classes) > MANY_CLASSES, _objects(split)
    tables = [_sizes(entries)]
    if many:
        weakest = sorted(classes, key=lambda name: _ap(best, name))[:SHOWN]
        note = f"The {SHOWN} classes that {best.name} finds worst."
        tables.append(_classes("AP of the weakest", weakest, entries, counts, note))
    if many and source and source is not best:
        changed = list(_most_changed(classes, best, source))
        note = f"Where AP of {best.name} and {source.name} differs most, what is lost first."
        tables.append(_classes("AP of the most changed", changed, entries, counts, note))
    note = "" if counts else "Objects of a class are not known without the annotations."
    return [*tables, _classes("AP of every class", classes, entries, counts, note, long=many)]


def _ap(entry: Entry, name: str) -> float:
    return entry.metrics.per_class.get(name) or 0.0


def _objects(split: CocoSplit | None) -> dict[str, int]:
    """Return the number of objects of every class, crowds left out; empty without a split."""
    if split is None:
        return {}
    labels = np.concatenate([boxes.labels[~boxes.crowd] for boxes in split.boxes])
    counts = np.bincount(labels, minlength=len(split.class_names))
    return dict(zip(split.class_names, counts.tolist(), strict=True))


def _most_changed(classes: Sequence[str], best: Entry, source: Entry) -> Iterator[str]:
    """Yield the classes of the largest loss and of the largest gain."""
    order = sorted(classes, key=lambda name: _ap(best, name) - _ap(source, name))
    yield from order[: SHOWN // 2]
    yield from order[-SHOWN // 2 :]


def _sizes(entries: Sequence[Entry]) -> Table:
    sizes: dict[str, list[float | None]] = {
        "small objects": [e.metrics.ap_small for e in entries],
        "medium objects": [e.metrics.ap_medium for e in entries],
        "large objects": [e.metrics.ap_large for e in entries],
        "all": [e.metrics.ap for e in entries],
    }
    return Table(
        ("AP of", *(entry.name for entry in entries)),
        [[name, *map(_percent, values)] for name, values in sizes.items()],
        "Small is below 32 x 32 pixels of the image, large above 96 x 96.",
        strong=len(sizes) - 1,
    )


def _classes(
    title: str,
    names: Sequence[str],
    entries: Sequence[Entry],
    counts: dict[str, int],
    note: str,
    *,
    long: bool = False,
) -> Table:
    """Return AP of some classes, with the number of their objects where it is known."""
    rows = [
        [
            name,
            *([f"{counts.get(name, 0):,}"] if counts else []),
            *(_percent(entry.metrics.per_class.get(name)) for entry in entries),
        ]
        for name in names
    ]
    titles = (title, *(["objects"] if counts else []), *(entry.name for entry in entries))
    return Table(titles, rows, note, long=long)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
