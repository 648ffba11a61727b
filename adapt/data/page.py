"""How is a data set shown on one page? (counts, sizes, problems, images, look-alikes)"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from adapt.artifacts import make_place, write_text
from adapt.data.check import LARGE, SMALL, Checked, DataReport, Pair
from adapt.data.coco import CocoSplit
from adapt.data.drawing import contact_sheet
from adapt.data.images import open_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 12  # classes in the table
BARS = 40  # classes in a figure
SHOWN = 12  # images of a sheet
PAIRS = 12  # look-alikes
THUMBNAIL = (240, 240)


def write_page(
    checked: Checked, root: Path, path: Path, more: Sequence[tuple[str, "Figure"]] = ()
) -> None:
    """Write an HTML file that needs no other one.

    Args:
        checked: What was found.
        root: The data set, for the title.
        path: HTML file to write.
        more: Captions and figures that follow those of the boxes.
    """
    make_place(path)
    found = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    reports, classes = checked.reports, _classes(checked.reports)
    text = found.get_template("page.html").render(
        root=root,
        reports=reports,
        checked=checked,
        classes=classes[:COLUMNS],
        more_classes=max(0, len(classes) - COLUMNS),
        figures=[*_figures(checked, classes), *((told, _svg(figure)) for told, figure in more)],
        sheets=_sheets(checked.splits),
        pairs=_shown_pairs(checked.pairs),
    )
    write_text(path, text)


def _classes(reports: Mapping[str, DataReport]) -> list[str]:
    """Return all classes, the most frequent first."""
    counts: dict[str, int] = {}
    for report in reports.values():
        for name, count in report.boxes_per_class.items():
            counts[name] = counts.get(name, 0) + count
    return sorted(counts, key=lambda name: -counts[name])


def _figures(checked: Checked, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return captions and SVG figures; none where there are no boxes."""
    if checked.boxed is None:
        return []
    shares = "Boxes of each class, as shares of its split: splits of one data set should be alike."
    sizes = (
        "Sides of the boxes (root of the area) in pixels of the image; lines are COCO's limits of "
        "small and medium objects. What a detector sees is smaller by the scale of its input."
    )
    return [
        (shares, _svg(_share_figure(checked.reports, classes[:BARS]))),
        (sizes, _svg(_size_figure(checked.boxed, classes[:BARS]))),
    ]


def _share_figure(reports: Mapping[str, DataReport], classes: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.28 * len(classes)), layout="constrained")
    axes = figure.subplots()
    known = {name: report for name, report in reports.items() if report.boxes}
    height = 0.8 / max(1, len(known))
    for number, (name, report) in enumerate(known.items()):
        total = max(1, sum(report.boxes_per_class.values()))
        shares = [report.boxes_per_class.get(of, 0) / total for of in classes]
        axes.barh(np.arange(len(classes)) + number * height, shares, height, label=name)
    axes.set_yticks(np.arange(len(classes)) + 0.4 - height / 2, classes, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of the boxes")
    axes.legend()
    return figure


def _size_figure(split: CocoSplit, classes: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    areas = np.concatenate([boxes.areas[~boxes.crowd] for boxes in split.boxes])
    labels = np.concatenate([boxes.labels[~boxes.crowd] for boxes in split.boxes])
    sides = np.sqrt(areas)
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(classes)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(classes):
        of_class = np.array([])
        if name in split.class_names:
            of_class = sides[labels == split.class_names.index(name)]
        if not len(of_class):
            continue
        low, first, middle, last, high = np.quantile(of_class, (0.05, 0.25, 0.5, 0.75, 0.95))
        axes.plot([low, high], [row, row], color="tab:blue", linewidth=1.5)
        axes.plot([first, last], [row, row], color="tab:blue", linewidth=6, solid_capstyle="butt")
        axes.plot([middle], [row], marker="|", color="black", markersize=11)
    for limit in (SMALL, LARGE):
        axes.axvline(limit**0.5, color="grey", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(-0.5, len(classes) - 0.5)
    axes.set_yticks(np.arange(len(classes)), classes, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("pixels: median, half of the boxes (thick), nine of ten (thin)")
    return figure


def _svg(figure: "Figure") -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    return text[text.index("<svg") :]


def _sheets(splits: Mapping[str, CocoSplit]) -> dict[str, str]:
    return {
        name: _jpeg(to_pil_image(contact_sheet(split, SHOWN))) for name, split in splits.items()
    }


def _shown_pairs(pairs: Mapping[str, Sequence[Pair]]) -> list[tuple[str, Path, Path, str, str]]:
    several = [(name, *pair) for name, of in pairs.items() for pair in of][:PAIRS]
    return [(name, one, other, _thumbnail(one), _thumbnail(other)) for name, one, other in several]


def _thumbnail(path: Path) -> str:
    image = open_image(path)
    image.thumbnail(THUMBNAIL)
    return _jpeg(image)


def _jpeg(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
