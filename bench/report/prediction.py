"""How well was the latency of the chosen networks predicted?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.artifacts import check_header, read_json
from adapt.cost.table import CostTable
from bench.networks.measure import Entry
from bench.report.drawing import SOURCE, Styles, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.parts import Figure, Section, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = ("detector", "budget ms", "table ms", "trial ms", "benchmark ms", "off")
NOTE = (
    "All are minima of a call. Table: the sum of its operations in the cost table, as the table's "
    "certificate corrects it. Trial: the network with random weights, measured while networks were "
    "chosen. Benchmark: the trained and exported file. Off: the benchmark against the last of the "
    "two before it."
)
UNPREDICTED = (
    "The cost table is of the recipe's own input and heads: it does not predict networks of "
    "others, which were measured until they met the budget."
)


def prediction(folder: Folder, drawn: Styles) -> Section:
    """Return what was predicted beside what was measured, and how the table did elsewhere."""
    title = "Predicted and measured latency"
    networks = {entry.name: _network(folder, entry) for entry in folder.detectors}
    known = [e for e in folder.detectors if networks[e.name].get("costs", {}).keys() & COSTS]
    costs = folder.of_run("costs.sqlite")
    missing = [] if known else ["No architecture file with a latency lies beside the detectors."]
    figure = _certificate(costs, known, networks, drawn) if costs else None
    if not figure:
        missing.append("There is no certified cost table in the folder of a run.")
    rows = [_row(entry, networks[entry.name]) for entry in known]
    table = [Table(TITLES, rows, NOTE)] if known else []
    joint = any("corrected_ms" not in networks[e.name]["costs"] for e in known if _derived(e))
    return Section(
        "prediction",
        title,
        lead=[UNPREDICTED] if joint else [],
        parts=[*table, *([figure] if figure else [])],
        missing=missing,
    )


COSTS = {"corrected_ms", "predicted_ms", "measured_ms"}


def _network(folder: Folder, entry: Entry) -> Mapping[str, Any]:
    """Return what is known of a network; of the source, what its trial took."""
    path = folder.of_run("source.latency.json") if entry is folder.source else None
    if not path:
        return folder.architecture(entry)
    content = check_header(read_json(path, "latency"), "source-latency", path)
    return {"costs": {"measured_ms": content["min_ms"]}}


def _derived(entry: Entry) -> bool:
    return entry.name.startswith("derived")


def _row(entry: Entry, network: Mapping[str, Any]) -> list[str]:
    costs, measured = network["costs"], entry.latency.min_ms
    table = costs.get("corrected_ms", costs.get("predicted_ms"))
    trial = costs.get("measured_ms")
    last = trial or table
    return [
        entry.name,
        _ms(_budget(network)),
        _ms(table),
        _ms(trial),
        _ms(measured),
        f"{measured / last - 1:+.1%}" if last else "–",
    ]


def _budget(network: Mapping[str, Any]) -> float | None:
    budget = network.get("budget", {})
    of_search = budget.get("amount") if budget.get("unit") == "ms" else None
    amount: float | None = network.get("budget_ms", of_search)
    return amount


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _certificate(
    path: Path, entries: Sequence[Entry], networks: Mapping[str, Any], drawn: Styles
) -> Figure | None:
    """Draw the detectors that a table is certified by, and those that were chosen by it."""
    with CostTable.open(path) as table:
        certificate = table.certificate
        if certificate is None:
            return None
        predicted = [table.corrected(ms) for ms in certificate["predicted_ms"]]
    figure, axes = new_figure()
    measured = certificate["measured_ms"]
    axes.plot(predicted, measured, "o", color=SOURCE, alpha=0.4, label="of the certificate")
    ends = [min(*predicted, *measured), max(*predicted, *measured)]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=0)
    _draw_chosen(axes, entries, networks, drawn)
    axes.set_xlabel("predicted in ms")
    axes.set_ylabel("measured minimum in ms")
    legend(axes, "upper left")
    caption = (
        f"{certificate['detectors']} whole detectors certify the cost table: mean error "
        f"{certificate['mape_corrected']:.1%} after correction, rank correlation (Kendall's tau) "
        f"{certificate['kendall_tau']:.2f}. On the line, prediction and measurement agree."
    )
    return Figure(svg(figure), caption)


def _draw_chosen(
    axes: "Axes", entries: Sequence[Entry], networks: Mapping[str, Any], drawn: Styles
) -> None:
    for entry in entries:
        color, marker = drawn[entry.name]
        costs, measured = networks[entry.name]["costs"], entry.latency.min_ms
        of_table = costs.get("corrected_ms")
        predicted = of_table or costs.get("measured_ms")
        label = entry.name if of_table else f"{entry.name}, by its trial"
        if predicted:
            axes.plot([predicted], [measured], marker, color=color, markersize=8, label=label)
