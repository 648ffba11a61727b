"""Which networks are they, and why were these chosen?"""

from collections.abc import Mapping, Sequence
from typing import Any

from adapt.architecture import Architecture
from adapt.detector.file import DetectorInfo
from adapt.traits import traits_of
from bench.networks.measure import Entry
from bench.report.drawing import COLOURS, SIZE, SOURCE, legend, new_figure, svg
from bench.report.folder import Folder
from bench.report.parts import BlockRow, Figure, Network, Part, Section, Table
from search.derive.ledger import Entry as Decision
from search.derive.ledger import read_ledger

LEDGER = (
    "Costs are those of the table, for the input and heads of the recipe, in {unit}. A rise is "
    "that of the held-out loss when one part of the trained source is replaced, before any "
    "training; a block's are summed up."
)
DIAGRAM = (
    "Bars are the output channels of the blocks, and black lines those of the source's; ↓ halves "
    "the resolution. A box is an operation: its kernel, and in bold its expansion; SE is "
    "squeeze-excitation; a dashed one is an operation that the source has more."
)
RACE = (
    "Finalists were trained shortly, and those of the highest AP on held-out images longer; the "
    "first one won."
)


def networks(folder: Folder) -> Section:
    """Return a diagram of every network, and what its choice was based on."""
    ours = [entry for entry in folder.detectors if not entry.is_peer]
    theirs = [entry.name for entry in folder.detectors if entry.is_peer]
    infos = {entry.name: folder.info(entry) for entry in ours}
    known = {name: info for name, info in infos.items() if info}
    source = known["source"].architecture if "source" in known else None
    widest = max((b.width for i in known.values() for b in i.architecture.blocks), default=1)
    parts: list[Part] = [
        Network(name, about(info), block_rows(info.architecture, source), widest)
        for name, info in known.items()
    ]
    told = [_decided(entry, folder) for entry in ours]
    lost = [name for name, info in infos.items() if not info]
    missing = [f"The files of {', '.join(lost)} are gone."] if lost else []
    if theirs:
        missing.append(f"Another tool wrote {', '.join(theirs)}, whose blocks are not known.")
    if not any(of for _, of in told):
        missing.append("No architecture file says why these networks were chosen.")
    return Section(
        "networks",
        "The networks, and why these",
        lead=[*([DIAGRAM] if known else []), *(sentence for sentence, _ in told if sentence)],
        parts=[*parts, *(part for _, of in told for part in of)],
        missing=missing,
    )


def about(info: DetectorInfo) -> str:
    """Return input, pyramid and heads in words."""
    detector, size = info.detector, info.input
    head = getattr(detector, "head", "retinanet")
    return (
        f"{info.architecture.source}, {head}; input {size.height}x{size.width}, pyramid of "
        f"{detector.fpn_width} channels, head depth {detector.head_depth}"
    )


def block_rows(network: Architecture, source: Architecture | None) -> list[BlockRow]:
    """Return the blocks of a network beside the source's, after the fixed first one."""
    first = () if traits_of(network.source).pooled else ((3, 1, False),)
    rows = [
        BlockRow(0, network.first_width, source.first_width if source else 0, first, 0, stride=2)
    ]
    for place, block in enumerate(network.blocks):
        had = source.blocks[place] if source and place < len(source.blocks) else None
        rows.append(
            BlockRow(
                number=place + 1,
                width=block.width,
                source_width=had.width if had else 0,
                ops=[(op.kernel, op.expansion, op.se) for op in block.ops],
                skipped=max(0, len(had.ops) - len(block.ops)) if had else 0,
                stride=block.stride,
            )
        )
    return rows


def _decided(entry: Entry, folder: Folder) -> tuple[str, list[Part]]:
    """Return by which rule a network was found, and the tables of what it was chosen from."""
    file, network = folder.architecture_file(entry), folder.architecture(entry)
    if not file or not network:
        return "", []
    parts: list[Part] = []
    if network.get("race"):
        parts.append(_race(entry.name, network))
    decisions, unit = read_ledger(network, file)
    if decisions:
        parts += [_ledger(entry.name, decisions, unit), _where(entry.name, decisions, unit)]
    return f"{entry.name} by: {network['rule']}.", parts


def _race(name: str, network: Mapping[str, Any]) -> Table:
    """Return the finalists, the winner first, with AP in every round."""
    rounds, finalists = network["race"], network["finalists"]
    reached = [{one["finalist"]: one["val_ap"] for one in of_round} for of_round in rounds]
    order = sorted(
        range(len(finalists)),
        key=lambda number: [-of_round.get(number, -1.0) for of_round in reversed(reached)],
    )
    titles = [f"{name}: finalist", "trial ms", *_round_titles(rounds)]
    rows = [
        [
            finalists[number]["setting"],
            f"{finalists[number]['measured_ms']:.2f}",
            *(_reached(of_round.get(number)) for of_round in reached),
        ]
        for number in order
    ]
    return Table(titles, rows, RACE, strong=0)


def _round_titles(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    return [f"AP, {of_round[0]['epochs']} epochs" for of_round in rounds]


def _reached(ap: float | None) -> str:
    return "–" if ap is None else f"{ap:.1f}"


def _ledger(name: str, decisions: Sequence[Decision], unit: str) -> Table:
    scale, shown = _scale(unit)
    rows = [
        [
            f"{one.block}: {one.chosen.replace(': ', ' channels, ')}",
            f"{one.source_cost / scale:.2f}",
            f"{one.cost / scale:.2f}",
            f"{one.saved / scale:.2f}",
            f"{one.rise:.3f}",
            f"{one.rise / one.saved * scale:.3f}" if one.saved > 0 and one.rise else "–",
        ]
        for one in decisions
    ]
    titles = (f"{name}: block", "source", "chosen", "saved", "rise of loss", f"rise per {shown}")
    return Table(titles, rows, LEDGER.format(unit=shown))


def _where(name: str, decisions: Sequence[Decision], unit: str) -> Figure:
    """Draw what every block costs beside the source's."""
    scale, shown = _scale(unit)
    numbers = [one.block for one in decisions]
    figure, axes = new_figure((SIZE[0], 2.8))
    source = [one.source_cost / scale for one in decisions]
    axes.bar(numbers, source, 0.8, color=SOURCE, alpha=0.3, label="source")
    axes.bar(numbers, [one.cost / scale for one in decisions], 0.5, color=COLOURS[0], label=name)
    axes.set_xlabel("block")
    axes.set_xticks(numbers)
    axes.set_ylabel(f"{shown} by the table")
    legend(axes)
    return Figure(svg(figure), f"Where {name} saves: the cost of every block by the table.")


def _scale(unit: str) -> tuple[float, str]:
    return (1e9, "GMAdds") if unit == "madds" else (1.0, "ms")
