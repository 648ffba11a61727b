"""Do scores, or short trainings, rank networks of one latency as whole trainings do?

    python -m bench.figures.ranking STUDY --out FILE [--short STUDY]

A finished study whose arms draw many random networks (`draw` of an arm) and score the source says
it of the scores; a second one of the same arms, with fewer epochs and judged on validation images,
says it of a race. Networks of one seed are compared with each other only.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr

from adapt.architecture import Architecture, Choices
from adapt.artifacts import atomic_path, check_header, read_json
from adapt.errors import AdaptError
from adapt.space import SearchSpace
from search.derive.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_NETWORKS = 4  # of a seed, for a rank correlation to say anything
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Network:
    """A network that was trained.

    Attributes:
        arm: The arm that it belongs to.
        seed: Its seed.
        ap: AP of 100 after the whole training.
        rise: Sum of the scores of its choices: rise of the loss; None if it has no sum.
        short_ap: AP of 100 after the short training; None if there was none.
    """

    arm: str
    seed: int
    ap: float
    rise: float | None
    short_ap: float | None


@dataclass(frozen=True)
class Agreement:
    """How well something ranks networks.

    Attributes:
        by_seed: Spearman's correlation with AP among the networks of each seed.
        mean: Its mean over the seeds.
        p: Share of random rankings, within seeds, whose mean is at least as high.
        networks: How many were ranked.
    """

    by_seed: dict[int, float]
    mean: float
    p: float
    networks: int


def trained_networks(study: Path, short: Path | None = None) -> list[Network]:
    """Return the networks of a study, with what was known of them before they were trained.

    Raises:
        AdaptError: If the study has no trainings or no scores.
    """
    short_ap = {key: ap for key, (ap, _) in _results(short).items()} if short else {}
    rises = _Rises(study)
    return [
        Network(arm, seed, ap, rises.of(architecture, seed), short_ap.get((arm, seed)))
        for (arm, seed), (ap, architecture) in _results(study).items()
    ]


def agreement(networks: Sequence[Network], value: Callable[[Network], float | None]) -> Agreement:
    """Return how well a value ranks networks by AP; the higher, the better they are said to be.

    Raises:
        AdaptError: If no seed has enough networks with that value.
    """
    by_seed: dict[int, tuple[list[float], list[float]]] = {}
    for network in networks:
        said = value(network)
        if said is not None:
            values, aps = by_seed.setdefault(network.seed, ([], []))
            values.append(said)
            aps.append(network.ap)
    compared = {seed: of for seed, of in by_seed.items() if len(of[0]) >= LEAST_NETWORKS}
    if not compared:
        raise AdaptError(
            f"no seed has {LEAST_NETWORKS} networks to rank; a study needs as many arms that draw"
        )
    found = {seed: float(spearmanr(*of).statistic) for seed, of in compared.items()}
    mean = float(np.mean(list(found.values())))
    number = sum(len(values) for values, _ in compared.values())
    return Agreement(found, mean, _chance(list(compared.values()), mean), number)


def _chance(pairs: Sequence[tuple[list[float], list[float]]], mean: float) -> float:
    """Return how often rankings by chance agree as well as that."""
    random = np.random.default_rng(0)
    total = np.zeros(PERMUTATIONS)
    for values, _ in pairs:
        ranks = np.arange(len(values)) - (len(values) - 1) / 2
        shuffled = random.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)
        total += shuffled @ ranks / (ranks @ ranks)
    return float((total / len(pairs) >= mean - 1e-9).mean())


def _results(study: Path) -> dict[tuple[str, int], tuple[float, Architecture]]:
    """Return AP of 100 and network by arm and seed."""
    results = {}
    for path in sorted((study / "trials").glob("*.json")):
        content = read_json(path, "result")
        if content.get("format") != "adapt-study-trial":
            continue  # how a detector was deployed
        check_header(content, "study-trial", path)
        network = Architecture.from_dict(content["architecture"])
        results[content["arm"], content["seed"]] = 100 * content["metrics"]["ap"], network
    if not results:
        raise AdaptError(f"{study} has no finished trainings; pass the folder of adapt study")
    return results


class _Rises:
    """Sums of the scores of each seed of a study."""

    def __init__(self, study: Path) -> None:
        self._study = study
        self._known: dict[int, tuple[Scores, SearchSpace]] = {}

    def of(self, architecture: Architecture, seed: int) -> float | None:
        """Return the sum of a network's choices; None if it is none of the space."""
        if seed not in self._known:
            self._known[seed] = self._read(seed)
        scores, space = self._known[seed]
        choices = Choices.found(architecture, space)
        return scores.rise(choices) if choices else None

    def _read(self, seed: int) -> tuple[Scores, SearchSpace]:
        files = sorted(self._study.glob(f"searches/scores-seed{seed}-*/scores.json"))
        if len(files) != 1:
            raise AdaptError(
                f"{self._study} has {len(files)} files of scores of seed {seed}, not one; the "
                "study needs an arm by scores"
            )
        scores, content = Scores.load(files[0])
        return scores, SearchSpace.restore(content["space"])


def draw(networks: Sequence[Network], found: Mapping[str, Agreement], path: Path) -> None:
    """Draw AP against what was known before, a panel for each, a colour for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axes, (name, one) in zip(panels, found.items(), strict=True):
        _draw_panel(axes, networks, name)
        axes.set_title(f"Spearman {one.mean:.2f}, p = {one.p:.2g}, {one.networks} networks")
    panels[0].set_ylabel("AP in % after the whole training")
    panels[0].legend(fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_panel(axes: "Axes", networks: Sequence[Network], name: str) -> None:
    for number, seed in enumerate(sorted({network.seed for network in networks})):
        known = [
            (value, network.ap)
            for network in networks
            if network.seed == seed and (value := VALUES[name](network)) is not None
        ]
        axes.scatter(*zip(*known, strict=True), color=f"C{number}", label=f"seed {seed}")
    axes.set_xlabel(LABELS[name])
    axes.grid(alpha=0.3)


VALUES: dict[str, Callable[[Network], float | None]] = {
    "scores": lambda network: None if network.rise is None else -network.rise,
    "short": lambda network: network.short_ap,
}
LABELS = {
    "scores": "minus the summed scores (rise of the loss)",
    "short": "AP in % on validation images after the short training",
}


def main(
    study: Annotated[Path, typer.Argument(help="Folder of a finished study.")],
    out: Annotated[Path, typer.Option(help="JSON file to write; a plot is written beside it.")],
    short: Annotated[
        Path | None, typer.Option(help="Folder of the study with short trainings.")
    ] = None,
) -> None:
    """Compare and write."""
    networks = trained_networks(study, short)
    names = ["scores", "short"] if short else ["scores"]
    found = {name: agreement(networks, VALUES[name]) for name in names}
    draw(networks, found, out.with_suffix(".png"))
    result: dict[str, Any] = {
        "agreement": {name: asdict(one) for name, one in found.items()},
        "networks": [asdict(network) for network in networks],
    }
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    for name, one in found.items():
        typer.echo(f"{LABELS[name]}: Spearman {one.mean:.2f}, p = {one.p:.2g}")


if __name__ == "__main__":
    typer.run(main)
