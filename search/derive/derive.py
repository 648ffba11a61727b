"""Which files does `adapt derive` write, for one network of a search or a front of them?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.artifacts import (
    atomic_path,
    check_header,
    header,
    make_folder,
    parsing,
    read_json,
    write_json,
)
from search.derive.finished import SearchFiles
from search.derive.ledger import plot, read_ledger
from search.recipe.budget import Budget, Unit

NETWORK = re.compile(r"arch(-\d+)?\.json")


def derive(files: SearchFiles, out: Path, budget: Budget | None = None) -> dict[str, Any]:
    """Write one network of a finished search to ``out``.

    Args:
        files: The search, and the cost table that predicts the latency of the network.
        out: Architecture file to write.
        budget: What the network may cost; None derives the arg max (paper section III-B).

    Returns:
        File, layers and costs of the network.

    Raises:
        AdaptError: If the search is unfinished, the table does not fit or has no certificate, or no
            network fits the budget.
    """
    with files.open() as search:
        if budget:
            architecture = search.network(search.within(budget).choices)
            rule = f"budget {budget}"
        else:
            architecture = search.supernet.argmax()
            rule = "argmax"
        costs, why = search.costs(architecture), search.explained(architecture)
    architecture.save(out, rule=rule, search=search.identity, costs=costs, **why)
    drawn = draw_ledger(why, out)
    return {"architecture": str(out), "network": str(architecture), **costs, **drawn}


def draw_ledger(content: Mapping[str, Any], out: Path) -> dict[str, Path]:
    """Draw the ledger of an architecture file beside it.

    Args:
        content: What the file holds.
        out: The file.

    Returns:
        The plot, by what it is called in results; nothing if there is no ledger.
    """
    entries, unit = read_ledger(content, out)
    if not entries:
        return {}
    path = out.with_suffix(".choices.png")
    plot(entries, unit, path)
    return {"choices": path}


def fresh_front(folder: Path) -> None:
    """Create the folder of a front, or delete the networks that an earlier front left in it.

    Raises:
        AdaptError: If it cannot be written to, or its ``front.json`` is damaged.
    """
    make_folder(folder)
    listing = folder / "front.json"
    if not listing.exists():
        return
    content = read_json(listing, "front")
    refined = isinstance(content, dict) and content.get("format") == "adapt-refined-front"
    check_header(content, "refined-front" if refined else "front", listing)
    with parsing("front", listing, "delete it, or choose another --out"):
        names = {Path(row["architecture"]).name for row in content["networks"]}
    # A damaged listing could name any file.
    for name in filter(NETWORK.fullmatch, names | ({"arch.json"} if refined else set())):
        (folder / name).unlink(missing_ok=True)


def derive_front(files: SearchFiles, out: Path, number: int) -> list[dict[str, Any]]:
    """Write the best networks of many budgets, ``front.json`` and the plot ``front.png``.

    The budgets are latencies if a cost table is given, multiply-adds otherwise.

    Args:
        files: The search, and the cost table of the latencies.
        out: Folder to write to; the networks are ``arch-01.json`` and so on, the cheapest first.
        number: How many budgets; several may have the same best network.

    Returns:
        File, score and costs of every network.

    Raises:
        AdaptError: If the search is unfinished, or the table does not fit or has no certificate.
    """
    make_folder(out)
    unit: Unit = "ms" if files.costs else "madds"
    with files.open() as search:
        front = search.deriver(unit).front(number)
        networks = [search.network(derived.choices) for derived in front]
        costs = [search.costs(network) for network in networks]
        reasons = [search.explained(network) for network in networks]
    fresh_front(out)
    rows = []
    for number, (derived, network, cost, why) in enumerate(
        zip(front, networks, costs, reasons, strict=True), start=1
    ):
        path = out / f"arch-{number:02d}.json"
        network.save(path, rule=f"front {unit}", search=search.identity, costs=cost, **why)
        rows.append({"architecture": str(path), "score": derived.score, **cost})
    write_json(out / "front.json", header("front", networks=rows))
    _plot(rows, out / "front.png")
    return rows


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw score over cost, the cost that a budget limits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    name = next(n for n in ("corrected_ms", "predicted_ms", "madds") if n in rows[0])
    costs = [row[name] / (1e9 if name == "madds" else 1.0) for row in rows]
    axes.plot(costs, [row["score"] for row in rows], marker="o", color="tab:blue")
    for number, (x, row) in enumerate(zip(costs, rows, strict=True), start=1):
        axes.annotate(f"{number:02d}", (x, row["score"]), (4, -10), textcoords="offset points")
    axes.set_xlabel("multiply-adds (10$^9$)" if name == "madds" else "predicted latency (ms)")
    axes.set_ylabel("log probability of the network")
    axes.set_title("Best network of each budget")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
