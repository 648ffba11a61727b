"""How are the results of `adapt bench` shown? (terminal, Markdown, CSV, JSON, plot)"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from adapt.artifacts import atomic_path, check_header, header, read_json, write_json, write_text
from adapt.command_line import warn
from adapt.data.evaluate import COCO_DETECTIONS
from adapt.errors import AdaptError
from adapt.terminal import print_rows
from bench.latency.timing import HALF_WIDTH, SLOW_ROUNDS, Latency
from bench.networks.footprint import Footprint
from bench.networks.measure import BenchResult, Entry
from bench.networks.remarks import pace, pairs, remarks, unreliable, warm_up
from bench.networks.stages import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Column = tuple[str, Callable[[Entry], str]]

COLUMNS: tuple[Column, ...] = (
    ("model", lambda e: e.name),
    ("runtime", lambda e: str(e.runner["runtime"])),
    ("precision", lambda e: e.precision),
    ("input", lambda e: f"{e.height}x{e.width}"),
    ("batch", lambda e: str(e.batch)),
    ("AP", lambda e: _percent(e.metrics.ap)),
    ("AP50", lambda e: _percent(e.metrics.ap50)),
    ("AP75", lambda e: _percent(e.metrics.ap75)),
    ("APs", lambda e: _percent(e.metrics.ap_small)),
    ("APm", lambda e: _percent(e.metrics.ap_medium)),
    ("APl", lambda e: _percent(e.metrics.ap_large)),
    ("p50 ms", lambda e: _median(e.latency)),
    ("p50 95 %", lambda e: "{:.2f} to {:.2f}".format(*e.latency.p50_interval_ms)),
    ("p90 ms", lambda e: f"{e.latency.p90_ms:.2f}"),
    ("p95 ms", lambda e: f"{e.latency.p95_ms:.2f}"),
    ("p99 ms", lambda e: f"{e.latency.p99_ms:.2f}"),
    ("min ms", lambda e: f"{e.latency.min_ms:.2f}"),
    ("images/s", lambda e: _known(e.images_per_s, 1)),
    ("load ms", lambda e: _of_file(e.footprint, "load_ms")),
    ("host MB", lambda e: _of_file(e.footprint, "host_mb")),
    ("GPU MB", lambda e: _of_file(e.footprint, "device_mb")),
    ("GMAdds", lambda e: _known(e.madds and e.madds / 1e9, 2)),
    ("MParams", lambda e: f"{e.params / 1e6:.2f}"),
    ("MB", lambda e: f"{e.size_mb:.1f}"),
)
FOOTPRINT = [field.name for field in fields(Footprint)]
# The columns that fit into 80 characters.
LEAST_SPAN = 2.0  # AP that a plot shows at least: another training may differ by as much
TERMINAL_COLUMNS = ("model", "runtime", "AP", "AP50", "p50 ms", "p95 ms", "GMAdds", "MParams", "MB")


def write_report(
    folder: Path,
    result: BenchResult,
    findings: Sequence[str] = (),
    families: Mapping[str, Sequence[str]] | None = None,
    details: Sequence[str] = (),
) -> list[Path]:
    """Write ``report.md``, ``.csv``, ``.json`` and ``.png`` into a folder, each atomically.

    Args:
        folder: Where to write.
        result: What was measured.
        findings: What else is to be said of it, as lines of ``report.md``.
        families: Names of models that the plot joins by a line, by the name of the line.
        details: Lines of Markdown that stand below the plot.

    Returns:
        The four files.

    Raises:
        AdaptError: If the folder cannot be written to.
    """
    files = [folder / f"report.{suffix}" for suffix in ("json", "csv", "md", "png")]
    as_json, as_csv, as_markdown, as_plot = files
    write_json(as_json, header("bench-report", **result.to_dict()))
    write_text(as_csv, csv_text(result))
    write_text(as_markdown, markdown(result, findings, details))
    write_plot(as_plot, result, families)
    return files


def read_report(path: Path) -> BenchResult:
    """Read a ``report.json`` that :func:`write_report` wrote.

    Raises:
        AdaptError: If it is missing, damaged or of another kind.
    """
    content = check_header(read_json(path, "report"), "bench-report", path)
    _complete_older(content)
    try:
        result = TypeAdapter(BenchResult).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdaptError(
            f"report {path} is damaged ({where}: {first['msg']}); measure again with `adapt bench`"
        ) from error
    if not result.entries:
        raise AdaptError(f"report {path} has no entries; measure again with `adapt bench`")
    return result


def _complete_older(content: dict[str, Any]) -> None:
    """Let the range of the median over the rounds be its interval, where a report has none."""
    entries = content.get("entries")
    for entry in entries if isinstance(entries, list) else []:
        latency = entry.get("latency") if isinstance(entry, dict) else None
        if isinstance(latency, dict) and "p50_range_ms" in latency:
            latency.setdefault("p50_interval_ms", latency["p50_range_ms"])


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _known(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _of_file(footprint: Footprint | None, name: str) -> str:
    return _known(getattr(footprint, name, None))


def _median(latency: Latency) -> str:
    if latency.reliable:
        return f"{latency.p50_ms:.2f}"
    low, high = latency.p50_interval_ms
    return f"UNRELIABLE ({low:.2f} to {high:.2f})"


def print_result(result: BenchResult) -> None:
    """Print what matters most on stdout, and why a median is no number on stderr."""
    columns = [column for column in COLUMNS if column[0] in TERMINAL_COLUMNS]
    rows = [[cell(entry) for _, cell in columns] for entry in result.entries]
    print_rows([title for title, _ in columns], rows, words=2, caption=conditions(result))
    for reason in unreliable(result):
        warn(reason)


def conditions(result: BenchResult) -> str:
    """Return device, precision, batch, threads and statistic in one line."""
    device = result.device.get("device", "unknown device")
    threads = f"{result.threads} thread" + "s" * (result.threads != 1)
    return (
        f"{device}, {_precisions(result)}, batch {_batches(result)}, {threads}, median (p50) "
        f"latency of {_calls(result)}{_detections(result)}"
    )


def _calls(result: BenchResult) -> str:
    every_ms = result.protocol.every_ms
    return f"a call every {every_ms:g} ms" if every_ms else "a call"


def _detections(result: BenchResult) -> str:
    """Say how many detections of an image count, where they are not COCO's number."""
    numbers = sorted({entry.metrics.max_detections for entry in result.entries})
    if numbers == [COCO_DETECTIONS]:
        return ""
    return f", AP with at most {' and '.join(map(str, numbers))} detections per image"


def _precisions(result: BenchResult) -> str:
    return " and ".join(sorted({entry.precision for entry in result.entries}))


def _batches(result: BenchResult) -> str:
    return " and ".join(map(str, sorted({entry.batch for entry in result.entries})))


def markdown(result: BenchResult, findings: Sequence[str] = (), details: Sequence[str] = ()) -> str:
    """Return the report as Markdown: the table, findings, and how its numbers came about."""
    titles = [title for title, _ in COLUMNS]
    rows = [[cell(entry).replace("|", "\\|") for _, cell in COLUMNS] for entry in result.entries]
    ruler = ["---" if title in ("model", "runtime") else "---:" for title in titles]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (titles, ruler, *rows))
    how = "\n".join(f"- {line}" for line in how_measured(result))
    found = "".join(f"- {line}\n" for line in findings) + "\n" * bool(findings)
    below = "".join(f"{line}\n" for line in details)
    return (
        f"# Benchmark\n\n{conditions(result)}.\n\n{table}\n\n"
        f"{found}![mAP against latency](report.png)\n{below}\n## How it was measured\n\n{how}\n"
    )


def how_measured(result: BenchResult) -> list[str]:
    """Return data, device, versions and protocol in sentences."""
    protocol = result.protocol
    runtimes = {f"{e.runner['runtime']} {e.runner['version']}" for e in result.entries}
    drifted = sum(entry.latency.drifted for entry in result.entries)
    return [
        f"Data: {result.annotations}, {result.images} images; AP is COCO's box AP in percent.",
        "mAP and latency come from the same file on the same runtime.",
        f"Device: {pairs(result.device)}.",
        f"Runtimes: {', '.join(sorted(runtimes))}; {_precisions(result)}, batch "
        f"{_batches(result)}, {result.threads} thread(s); AP is evaluated with all cores.",
        f"Libraries: {pairs(result.versions)}.",
        f"Latency: {pace(result)} with a batch that is already in the runtime's memory; "
        f"decoding and NMS included, reading and resizing not. {protocol.rounds} rounds over all "
        f"models of a device, each in another random order, at least {protocol.round_ms:.0f} ms of "
        "calls per model and round; percentiles over all calls. The 95 % interval of the median is "
        "a bootstrap over rounds, since calls of a round are not independent.",
        warm_up(result),
        "Drift: an anchor operation on the same device is timed beside every sample; rounds in "
        f"which it is more than {protocol.drift:.0%} slower than at its best, or a GPU says that "
        f"it is throttled, are repeated up to {protocol.retries} times. "
        f"{drifted} of {protocol.rounds * len(result.entries)} rounds stayed slow.",
        f"UNRELIABLE stands where half of the interval is wider than {HALF_WIDTH:.0%} of the "
        f"median, more than {SLOW_ROUNDS:.0%} of the rounds stayed slow, or throttling stayed.",
        *remarks(result),
    ]


def csv_text(result: BenchResult) -> str:
    """Return one row per model with unrounded numbers; column names carry the units."""
    rows = [_csv_row(entry) for entry in result.entries]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(entry: Entry) -> dict[str, Any]:
    metrics, latency = entry.metrics.to_dict(), asdict(entry.latency)
    del metrics["per_class"]
    latency["p50_low_ms"], latency["p50_high_ms"] = latency.pop("p50_range_ms")
    interval = latency.pop("p50_interval_ms")
    latency["p50_interval_low_ms"], latency["p50_interval_high_ms"] = interval
    footprint = vars(entry.footprint) if entry.footprint else dict.fromkeys(FOOTPRINT)
    return {
        "model": entry.name,
        "runtime": entry.runner["runtime"],
        "precision": entry.precision,
        "height": entry.height,
        "width": entry.width,
        "batch": entry.batch,
        **metrics,
        **latency,
        "reliable": entry.latency.reliable,
        "images_per_s": entry.images_per_s,
        "network_ms": entry.network_ms,
        **{f"{name.replace(' ', '_')}_ms": (entry.stages_ms or {}).get(name) for name in STAGES},
        **footprint,
        "madds": entry.madds,
        "params": entry.params,
        "size_mb": entry.size_mb,
    }


def write_plot(
    path: Path, result: BenchResult, families: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Draw AP against latency: a point at the median, a whisker to the 95th percentile."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_axes(axes, result.entries)
    if families:
        _draw_families(axes, result.entries, families)
    else:
        _draw_models(axes, result.entries)
    axes.set_xlabel("latency in ms (p50, whisker to p95; hollow: unreliable)", fontsize=12)
    axes.set_ylabel("COCO box AP in %", fontsize=12)
    axes.set_title(conditions(result), fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_axes(axes: "Axes", entries: Sequence[Entry]) -> None:
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=11)
    found = [100 * entry.metrics.ap for entry in entries]
    span = max(LEAST_SPAN, 1.4 * (max(found) - min(found)))
    middle = (max(found) + min(found)) / 2
    axes.set_ylim(middle - span / 2, middle + span / 2)
    # Room on the right for the name of the slowest.
    axes.set_xlim(0, 1.15 * max(entry.latency.p95_ms for entry in entries))


def _draw_models(axes: "Axes", entries: Sequence[Entry]) -> None:
    """Draw each model in a colour of its own."""
    for place, entry in enumerate(sorted(entries, key=lambda entry: entry.metrics.ap)):
        name = f"{entry.name} ({entry.runner['runtime']})"
        _draw_entry(axes, entry, name, f"C{place % 10}", above=place % 2 == 0)


def _draw_families(
    axes: "Axes", entries: Sequence[Entry], families: Mapping[str, Sequence[str]]
) -> None:
    """Draw each family in one colour, joined by a line: the upper left is better."""
    # With several latencies to compare, those in between matter, not the distance from 0.
    axes.set_xlim(0.85 * min(e.latency.p50_ms for e in entries), axes.get_xlim()[1])
    for number, (family, names) in enumerate(families.items()):
        color = f"C{number}"
        of_family = [entry for entry in entries if entry.name in names]
        of_family.sort(key=lambda entry: entry.latency.p50_ms)
        axes.plot(
            [entry.latency.p50_ms for entry in of_family],
            [100 * entry.metrics.ap for entry in of_family],
            color=color,
            lw=1.5,
            marker="o",
            label=family,
        )
        for entry in of_family:
            _draw_entry(axes, entry, entry.name, color, above=number % 2 == 0)
    axes.legend(loc="lower right", fontsize=11)


def _draw_entry(axes: "Axes", entry: Entry, name: str, color: str, *, above: bool) -> None:
    latency, ap = entry.latency, 100 * entry.metrics.ap
    axes.errorbar(
        latency.p50_ms,
        ap,
        xerr=np.array([[0.0], [latency.p95_ms - latency.p50_ms]]),
        fmt="o",
        markersize=8,
        capsize=4,
        color=color,
        markerfacecolor=color if latency.reliable else "white",
    )
    axes.annotate(
        name,
        (latency.p50_ms, ap),
        xytext=(0, 9 if above else -9),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=11,
        parse_math=False,  # names of files may hold dollars
    )
