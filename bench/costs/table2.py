"""How large are the detectors that the paper compares, and how fast are they here? (Table II)"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from adapt.cost.counted import counted_madds
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector, count_parameters
from adapt.network.published import NETWORKS, published_backbone
from adapt.progress import Progress, silent
from adapt.runtime import Runtime
from bench.costs.recipe_table import as_certified
from bench.latency.subject import WholeDetector
from bench.latency.workers import Workers
from search.recipe.recipe import Recipe

PAPER_SIZE = InputSize(800, 1088)
CLASSES = 80  # of COCO
UNPUBLISHED = "its architecture is not published"
# Backbone, millions of parameters and 10^9 multiply-adds as the paper prints them, what to know.
ROWS: tuple[tuple[str, float, float, str], ...] = (
    ("mobilenet_v2", 11.49, 133.05, ""),
    ("resnet50", 37.97, 202.84, ""),
    (
        "detnas",
        13.41,
        133.26,
        "its authors' code lists another network than the one that was counted",
    ),
    ("fna", 11.73, 133.03, ""),
    ("fna++", 11.90, 132.86, UNPUBLISHED),
    ("fbnet_c", 12.65, 134.17, ""),
    ("proxyless_gpu", 14.62, 135.81, ""),
    ("densenas_c", 13.24, 133.91, ""),
    ("ours", 11.63, 134.92, f"{UNPUBLISHED}; `adapt search` of the paper recipe finds one"),
)


@dataclass(frozen=True)
class Comparator:
    """A row of Table II.

    Attributes:
        backbone: Name, as of :func:`adapt.network.published.published_backbone`.
        paper_mparams: Millions of parameters of the detector, in the paper.
        paper_gmadds: 10^9 multiply-adds at 800x1088, in the paper.
        mparams: What it has here; None if its architecture is not published.
        gmadds: What it takes here, at the size that was asked for.
        least_ms: Latency that was measured, the minimum; None if it was not.
        note: What to know.
    """

    backbone: str
    paper_mparams: float
    paper_gmadds: float
    mparams: float | None
    gmadds: float | None
    least_ms: float | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def table_two(
    size: InputSize = PAPER_SIZE, runtime: Runtime | None = None, progress: Progress = silent
) -> list[Comparator]:
    """Return the detectors of Table II: RetinaNet around each backbone, for the classes of COCO.

    Args:
        size: Input at which multiply-adds are counted and latency is measured.
        runtime: Where latency is measured; nowhere if None.
        progress: Told after every detector.

    Raises:
        AdaptError: If the runtime does not work here.
    """
    measured = _measured(size, runtime, progress) if runtime else {}
    rows = []
    for name, mparams, gmadds, note in ROWS:
        counted = None if UNPUBLISHED in note else _counted(name, size)
        if runtime and counted and name not in measured:
            note = "; ".join(
                filter(None, (note, "only networks of MBConvs or bottlenecks are measured"))
            )
        ours = counted or (None, None)
        rows.append(Comparator(name, mparams, gmadds, ours[0], ours[1], measured.get(name), note))
    return rows


def _counted(name: str, size: InputSize) -> tuple[float, float]:
    with torch.device("meta"):
        model = build_detector(published_backbone(name), DetectorConfig(CLASSES))
    return count_parameters(model) / 1e6, counted_madds(model, size) / 1e9


def _measured(size: InputSize, runtime: Runtime, progress: Progress) -> Mapping[str, float]:
    recipe = Recipe(name="table2", input=size).with_device(runtime=runtime)
    config, found = recipe.detector_config(CLASSES), {}
    with Workers(as_certified(recipe, None)) as workers:
        for done, (name, network) in enumerate(NETWORKS.items(), start=1):
            subject = WholeDetector(network, config, size)
            (latency,) = workers.latencies([subject], name=name, fix="free memory")
            found[name] = latency.min_ms
            progress(done, len(NETWORKS), f"{name} {latency.min_ms:.4g} ms")
    return found


def as_text(rows: Sequence[Comparator], size: InputSize) -> tuple[list[str], list[list[str]], str]:
    """Return the titles of a table, its cells, and what is to be known of them."""
    at = "" if size == PAPER_SIZE else f" at {size.height}x{size.width}"
    with_ms = any(row.least_ms for row in rows)
    titles = ["backbone", "MParams", "MParams, paper", f"GMAdds{at}", "GMAdds, paper"]
    cells = [
        [
            row.backbone,
            _number(row.mparams),
            _number(row.paper_mparams),
            _number(row.gmadds),
            _number(row.paper_gmadds),
            *([_number(row.least_ms)] * with_ms),
        ]
        for row in rows
    ]
    notes = [f"{row.backbone}: {row.note}" for row in rows if row.note]
    return [*titles, *(["least ms"] * with_ms)], cells, "\n".join(notes)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
