"""What did each block of a network save in cost, and what did that cost in loss?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture, Choices
from adapt.artifacts import atomic_path, parsing, typed
from adapt.cost.expectation import CostModel
from adapt.errors import FORBID_UNKNOWN
from adapt.sources import source_of
from adapt.space import SearchSpace
from search.derive.scores import Scores
from search.recipe.budget import Unit


@dataclass(frozen=True)
class Entry:
    """One block of a network beside the source's.

    Attributes:
        block: Its number, from 1.
        chosen: Its width and operations, as text.
        source_cost: Cost of the source's block, in ms or multiply-adds, with what reads its output
            in the pyramid. A block reads as many channels as the block before it has.
        cost: Cost of the chosen block.
        rise: Sum of the scores of its choices.
        candidates: Score of every candidate width and operation of the block, by its name.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    block: int
    chosen: str
    source_cost: float
    cost: float
    rise: float
    candidates: dict[str, float]

    @property
    def saved(self) -> float:
        """What the choice saves; negative if it costs more than the source's block."""
        return self.source_cost - self.cost

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def ledger(
    scores: Scores, model: CostModel, space: SearchSpace, network: Architecture
) -> list[Entry]:
    """Return what was saved and lost in every block.

    Args:
        scores: Of all choices.
        model: Cost of all choices.
        space: Their space.
        network: A network of the space.

    Returns:
        One entry per block; none if the source is not a network of the space.
    """
    source = source_of(space)
    had, has = (Choices.found(one, space) if one else None for one in (source, network))
    if had is None or has is None:
        return []
    entries = []
    for number, block in enumerate(network.blocks):
        ops, width = has.ops[number], has.widths[number]
        of_ops = zip(scores.ops[number], ops, strict=True)
        rise = scores.widths[number][width] + sum(of_op[index] for of_op, index in of_ops)
        entries.append(
            Entry(
                number + 1,
                f"{block.width}: {' '.join(map(str, block.ops))}",
                _cost(model, had, number),
                _cost(model, has, number),
                rise,
                _candidates(scores, space, number),
            )
        )
    return entries


def _cost(model: CostModel, choices: Choices, number: int) -> float:
    before = choices.widths[number - 1] if number else 0
    width, (first, *later) = choices.widths[number], choices.ops[number]
    cost = float(model.first[number][before, width, first]) + float(model.taps[number][width])
    return cost + sum(float(model.later[number][width, op]) for op in later)


def _candidates(scores: Scores, space: SearchSpace, number: int) -> dict[str, float]:
    """Return the scores of a block's candidates; of equal positions' operations one by one."""
    block = space.blocks[number]
    named = {f"width {w}": s for w, s in zip(block.widths, scores.widths[number], strict=True)}
    for position in range(block.num_ops):
        for op, score in zip(block.candidates(position), scores.ops[number][position], strict=True):
            named[f"{position + 1}: {op}"] = score
    return named


def read_ledger(content: Mapping[str, Any], path: Path) -> tuple[list[Entry], Unit]:
    """Return the ledger in an architecture file, and the unit of its costs; empty if it has none.

    Args:
        content: What the file holds.
        path: The file, for errors.

    Raises:
        AdaptError: If it is none.
    """
    with parsing("the ledger of", path, "derive the network again"):
        held = content.get("ledger", {"unit": "ms", "blocks": []})
        unit: Unit = typed(Unit, held["unit"])
        return typed(list[Entry], held["blocks"]), unit


def table(entries: Sequence[Entry], unit: Unit) -> list[str]:
    """Return a ledger as lines of Markdown.

    Args:
        entries: The blocks.
        unit: ``ms``, or ``madds``, which are shown as billions.
    """
    scale, shown = (1e9, "G") if unit == "madds" else (1.0, "ms")
    lines = [
        f"| block | chosen | {shown} | saved | rise of the loss | rise per {shown} |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for entry in entries:
        saved = entry.saved / scale
        price = f"{entry.rise / saved:.3f}" if saved > 0 and entry.rise else "–"
        lines.append(
            f"| {entry.block} | {entry.chosen} | {entry.cost / scale:.2f} | {saved:.2f} | "
            f"{entry.rise:.3f} | {price} |"
        )
    return lines


def plot(entries: Sequence[Entry], unit: Unit, path: Path) -> None:
    """Draw what every block costs beside the source's, and the scores of all its candidates.

    Args:
        entries: The blocks.
        unit: ``ms`` or ``madds``.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    scale, shown = (1e9, "multiply-adds (10$^9$)") if unit == "madds" else (1.0, "latency (ms)")
    numbers = [entry.block for entry in entries]
    figure = Figure(figsize=(10, 4), layout="constrained")
    costs, rises = figure.subplots(1, 2)
    source = [entry.source_cost / scale for entry in entries]
    costs.bar(numbers, source, 0.8, color="lightgray", label="source")
    costs.bar(numbers, [e.cost / scale for e in entries], 0.5, color="tab:blue", label="chosen")
    costs.set_ylabel(f"{shown} by the table")
    costs.set_title("Where the cost is")
    for entry in entries:
        candidates = [value for value in entry.candidates.values() if value]
        spread = [entry.block] * len(candidates)
        rises.scatter(spread, candidates, 14, color="gray", alpha=0.6, zorder=3)
    rises.scatter([], [], 14, color="gray", alpha=0.6, label="one candidate")
    chosen = [entry.rise for entry in entries]
    rises.bar(numbers, chosen, 0.5, color="tab:blue", label="chosen, summed")
    rises.set_ylabel("rise of the held-out loss")
    rises.set_title("What changes cost, before training")
    for axes in (costs, rises):
        axes.set_xlabel("block")
        axes.set_xticks(numbers)
        axes.legend(frameon=False)
        axes.grid(axis="y", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
