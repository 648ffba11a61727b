"""Which command derives networks from a search? (`adapt derive`, with `--verify`, `--refine`)"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from adapt.command_line import JsonOpt, grouped, plain, show, warn
from adapt.errors import AdaptError
from search.commands import CostsOptions, DataOpt

if TYPE_CHECKING:
    from search.derive.finished import SearchFiles
    from search.recipe.budget import Budget


@dataclass(frozen=True)
class DeriveOptions:
    """Which networks are derived."""

    budget: Annotated[
        str | None,
        typer.Option("--budget", help="Most it may cost, such as 4.0ms or 134.9G multiply-adds."),
    ] = None
    pareto: Annotated[
        int | None,
        typer.Option("--pareto", min=2, help="Derive the best networks of so many budgets."),
    ] = None
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Measure, and correct the table until --budget is met."),
    ] = False
    refine: Annotated[
        int | None,
        typer.Option(
            "--refine", min=1, help="Re-rank so many networks of the front on held-out images."
        ),
    ] = None
    evolve: Annotated[
        int, typer.Option("--evolve", min=0, help="Breed so many generations from these.")
    ] = 0

    def kind(self, data: Path | None) -> Literal["one", "verified", "front", "refined"]:
        """Return which of the four derivations the options ask for.

        Raises:
            AdaptError: If two options exclude each other, or ``data`` would not be used.
        """
        refined = bool(self.refine or self.evolve)
        if self.verify and (self.pareto or refined):
            option = "--pareto" if self.pareto else "--refine" if self.refine else "--evolve"
            raise AdaptError(f"--verify measures the network of one budget; leave out {option}")
        if data and not self.refine:
            raise AdaptError(
                f"{data} is only looked at to re-rank a front; pass --refine, or no --data"
            )
        if self.pareto and self.budget and not refined:
            raise AdaptError("--pareto derives for many budgets; leave out --budget or --pareto")
        if refined:
            return "refined"
        return "front" if self.pareto else "verified" if self.verify else "one"

    def parsed_budget(self) -> "Budget | None":
        """Return the budget, if there is one."""
        from search.recipe.budget import Budget

        return Budget.parse(self.budget) if self.budget else None


@grouped
def derive_command(
    searched: Annotated[
        Path,
        typer.Argument(
            help="`supernet.pt` of a finished search, or `scores.json` of `adapt score`."
        ),
    ],
    networks: DeriveOptions,
    costs: CostsOptions,
    out: Annotated[
        Path | None, typer.Option("--out", help="Architecture file; a folder for --pareto.")
    ] = None,
    data: DataOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Derive architectures: the arg max of a search, or the best within a budget.

    The best is the most probable of a search, and the one that loses least of scores.

    Example: `adapt derive runs/bccd/search/supernet.pt --budget 9.5ms --costs runs/costs.sqlite`
    """
    from search.derive.decision import decided
    from search.derive.finished import SearchFiles

    files = SearchFiles(searched, costs.costs, costs.uncertified)
    match networks.kind(data):
        case "front":
            result, title = _front(files, out or searched.parent / "front", networks), ""
        case "refined":
            result = _refined(files, out or searched.parent / "refined", networks, data)
            title = "refined"
            costs.tell_certificate(networks.parsed_budget())
            _warn_of_chosen_split(result)
        case _:
            result = _one(files, out or searched.parent / "arch.json", networks)
            title = "derived"
            costs.tell_certificate(None if networks.verify else networks.parsed_budget())
    found = decided(searched)
    if doubt := found.pop("doubt"):
        warn(doubt)
    result["decided"] = found
    show(result if as_json else _readable(result), as_json=as_json, title=title)


def _warn_of_chosen_split(refined: dict[str, Any]) -> None:
    if refined["chosen_on"] == refined["benchmark"]:
        warn(
            f"networks were chosen on `{refined['chosen_on']}`, which the benchmark reports too: "
            "its AP will be too good; set data.test to another split"
        )


def _one(files: "SearchFiles", out: Path, networks: DeriveOptions) -> dict[str, Any]:
    """Derive one network; with ``--verify``, by measurement."""
    from adapt.progress import console_stage
    from bench.acceptance.verify import derive_verified
    from search.derive.derive import derive

    budget = networks.parsed_budget()
    if not networks.verify:
        return derive(files, out, budget)
    with console_stage("verify") as progress:
        return derive_verified(files, {out: budget}, progress=progress)[0]


def _front(files: "SearchFiles", out: Path, networks: DeriveOptions) -> dict[str, Any]:
    """Derive the best networks of many budgets."""
    from search.derive.derive import derive_front

    assert networks.pareto is not None
    return {"networks": derive_front(files, out, networks.pareto), "plot": out / "front.png"}


def _refined(
    files: "SearchFiles", out: Path, networks: DeriveOptions, data: Path | None
) -> dict[str, Any]:
    """Re-rank a front on held-out images."""
    from adapt.progress import console_stage
    from bench.acceptance.refine import Refinement, refine_front

    budget = networks.parsed_budget()
    refinement = Refinement.of(networks.pareto, networks.refine, networks.evolve, budget)
    return refine_front(files, out, refinement, data=data, stage=console_stage)


def _readable(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with one line per network, and per measured round."""
    lines = dict(result)
    if "networks" in result:
        rows = result["networks"]
        lines["networks"] = [f"{Path(r['architecture']).name}: {plain(r)}" for r in rows]
    if "rounds" in result:
        lines["rounds"] = list(map(plain, result["rounds"]))
    return lines
