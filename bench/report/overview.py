"""Which detector is better than the source, and at which latency?"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.networks.measure import Entry
from bench.networks.report import conditions
from bench.report.drawing import Styles, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.found import FEW_IMAGES, MANY_DETECTIONS, Found, Interval
from bench.report.parts import Figure, Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = (
    "detector",
    "AP",
    "p50 ms",
    "Δ AP",
    "time",
    "AP 95 %",
    "p50 95 %",
    "AP50",
    "GMAdds",
    "MB",
)
NOTE = (
    "AP is COCO's box AP in percent, p50 the median latency of a call. Δ AP is the gain over the "
    "source, and time the share of its latency. AP 95 %, and the brackets beside Δ AP, are 95 % "
    "intervals over images that are drawn with replacement, the same for all detectors; another "
    "training differs by more than that. p50 95 % is its interval over rounds. The row that "
    "stands out has the highest AP on these images of those that were found, which flatters it "
    "if there are several."
)


def verdict(folder: Folder, found: Found) -> str:
    """Return in one sentence what the best detector gains over the source."""
    best, source = folder.chosen, folder.source
    reached = f"{best.name} reaches {_ap(best):.1f} AP in {_latency(best)}"
    if source is None or source is best:
        return f"{reached}, the best of {len(folder.detectors)} measured."
    gain, share = _ap(best) - _ap(source), best.latency.p50_ms / source.latency.p50_ms
    than = f"{source.name} reaches {_ap(source):.1f} AP in {_latency(source)}"
    return (
        f"{reached}, where {than}: {gain:+.1f} AP{_how_sure(found.gain.get(best.name))} in "
        f"{share:.0%} of its time."
    )


def _how_sure(gain: Interval | None) -> str:
    """Say whether a gain is more than a choice of images."""
    if gain is None:
        return ""
    low, high = gain
    shown = "" if low > 0 or high < 0 else ", so that a difference in AP is not shown"
    return f" (95 % interval {low:+.1f} to {high:+.1f} over the images{shown})"


def overview(folder: Folder, found: Found, drawn: Styles) -> Section:
    """Return the table of all detectors, and AP over latency."""
    rows = [_row(entry, folder.source, found) for entry in folder.detectors]
    best = folder.detectors.index(folder.chosen)
    return Section(
        "overview",
        "AP and latency",
        parts=(Table(TITLES, rows, NOTE, strong=best), _figure(folder, found, drawn)),
        missing=list(_left_out(folder, found)),
    )


def _left_out(folder: Folder, found: Found) -> Iterator[str]:
    if len(folder.detectors) < len(folder.result.entries):
        yield "Latencies are those of landscape images; report.md has those of portrait ones."
    if not found.ap:
        yield found.why_not or (
            f"Intervals of AP are left out for fewer than {FEW_IMAGES} images, and for more than "
            f"{MANY_DETECTIONS:,} detections, of which they take minutes; `adapt compare` has them."
        )


def _row(entry: Entry, source: Entry | None, found: Found) -> list[str]:
    low, high = entry.latency.p50_interval_ms
    compared = source is not None and source is not entry
    gain = f"{_ap(entry) - _ap(source):+.1f}" if source and compared else "–"
    share = f"{entry.latency.p50_ms / source.latency.p50_ms:.0%}" if source else "–"
    return [
        entry.name,
        f"{_ap(entry):.1f}",
        f"{entry.latency.p50_ms:.2f}" + " (unreliable)" * (not entry.latency.reliable),
        gain + _bracketed(found.gain.get(entry.name)),
        share,
        _interval(found.ap.get(entry.name), ".1f"),
        f"{low:.2f} to {high:.2f}",
        f"{100 * entry.metrics.ap50:.1f}",
        "–" if entry.madds is None else f"{entry.madds / 1e9:.2f}",
        f"{entry.size_mb:.1f}",
    ]


def _figure(folder: Folder, found: Found, drawn: Styles) -> Figure:
    figure, axes = new_figure((5.4, 3.8))
    for entry in folder.detectors:
        _draw(axes, entry, found.ap.get(entry.name), *drawn[entry.name])
    axes.set_xlabel("median latency of a call in ms")
    axes.set_ylabel("COCO box AP in %")
    axes.margins(x=0.12, y=0.15)
    _draw_front(axes, folder.detectors)
    legend(axes)  # where there is room: a peer may be slow and weak
    bars = "AP's 95 % interval over the images" if found.ap else "no interval of AP"
    caption = (
        "Up and to the left is better; above and left of the dashed line (the Pareto front) there "
        f"is none. Bars: 95 % interval of the median over the rounds, and {bars}. "
        f"{conditions(folder.result)}."
    )
    return Figure(svg(figure), caption)


def _draw(axes: "Axes", entry: Entry, of_ap: Interval | None, color: str, marker: str) -> None:
    ap, latency = _ap(entry), entry.latency
    low, high = of_ap or (ap, ap)
    beside = np.abs(np.array([[x] for x in latency.p50_interval_ms]) - latency.p50_ms)
    axes.errorbar(
        latency.p50_ms,
        ap,
        xerr=beside,
        yerr=[[max(0.0, ap - low)], [max(0.0, high - ap)]] if of_ap else None,
        fmt="none",
        capsize=3,
        elinewidth=1,
        ecolor=color,
    )
    axes.plot(latency.p50_ms, ap, marker, markersize=8, color=color, label=entry.name)


def _draw_front(axes: "Axes", entries: Sequence[Entry]) -> None:
    """Draw the front from the lower to the right edge."""
    front, (_, right), (low, _) = pareto(entries), axes.get_xlim(), axes.get_ylim()
    times = [entry.latency.p50_ms for entry in front]
    aps = [_ap(entry) for entry in front]
    axes.step(
        [times[0], *times, right],
        [low, *aps, aps[-1]],
        where="post",
        color="#888888",
        linestyle="--",
        linewidth=1,
        zorder=0,
    )
    axes.set_xlim(right=right)
    axes.set_ylim(bottom=low)


def pareto(entries: Sequence[Entry]) -> list[Entry]:
    """Return the detectors that none is both faster than and better than, the fastest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda one: (one.latency.p50_ms, -one.metrics.ap)):
        if not front or entry.metrics.ap > front[-1].metrics.ap:
            front.append(entry)
    return front


def _ap(entry: Entry) -> float:
    return 100 * entry.metrics.ap


def _latency(entry: Entry) -> str:
    low, high = entry.latency.p50_interval_ms
    doubt = "" if entry.latency.reliable else ", which is unreliable"
    return f"{entry.latency.p50_ms:.1f} ms ({low:.1f} to {high:.1f}{doubt})"


def _interval(values: Interval | None, form: str) -> str:
    return f"{values[0]:{form}} to {values[1]:{form}}" if values else "–"


def _bracketed(values: Interval | None) -> str:
    return f" ({_interval(values, '+.1f')})" if values else ""
