"""How are the results of a study shown? (terminal, Markdown, CSV, JSON, plot)"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from adapt.artifacts import atomic_path, write_json, write_text
from adapt.terminal import print_rows
from bench.acceptance.meet import TOLERANCE
from bench.study.latency import DRIFT
from bench.study.result import ArmResult, StudyResult

TITLES = ("arm", "seeds", "AP", "sd", "95 %", "min ms", "GMAdds", "search s")


def write_study(folder: Path, result: StudyResult) -> list[Path]:
    """Write ``study.json``, ``.csv``, ``.md`` and ``.png`` into a folder, each atomically.

    Raises:
        AdaptError: If the folder cannot be written to.
    """
    files = [folder / f"study.{suffix}" for suffix in ("json", "csv", "md", "png")]
    as_json, as_csv, as_markdown, as_plot = files
    write_json(as_json, result.to_dict())
    write_text(as_csv, csv_text(result))
    write_text(as_markdown, markdown(result))
    write_plot(as_plot, result)
    return files


def print_study(result: StudyResult) -> None:
    """Print the arms and the verdicts on stdout."""
    print_rows(list(TITLES), [_row(arm) for arm in result.arms], words=1, caption=_caption(result))
    for line in findings(result):
        print(line)


def findings(result: StudyResult) -> list[str]:
    """Return the verdicts, and what limits them, as lines of text."""
    lines = [verdict.sentence() for verdict in result.verdicts]
    lines += [
        f"{arm.name} was dropped after {arm.dropped_after} seeds, by the rule of the study"
        for arm in result.arms
        if arm.dropped_after
    ]
    lines += [
        f"{arm.name} is not at equal latency: up to {arm.off_budget:+.1%} of the budget"
        f"{_on_average(arm, result.budget_ms)}"
        for arm in result.arms
        if abs(arm.off_budget) > TOLERANCE
    ]
    if result.drift > DRIFT:
        lines.append(
            f"the latencies are void: measured again, they differed by up to {result.drift:.1%}; "
            "repeat the study on a quiet machine, which measures only them"
        )
    if result.missing:
        lines.append(f"{len(result.missing)} trainings have no result: {result.missing[0]} ...")
    return lines


def _on_average(arm: ArmResult, budget_ms: float | None) -> str:
    if not budget_ms:
        return ""
    return f", {fmean(arm.latency_ms.values()) / budget_ms - 1:+.1%} on average"


def _row(arm: ArmResult) -> list[str]:
    return [
        arm.name,
        str(len(arm.ap)),
        f"{arm.mean:.2f}",
        f"{arm.deviation:.2f}",
        f"±{arm.half_width:.2f}" if len(arm.ap) > 1 else "–",
        _mean(arm.latency_ms, 1),
        _mean(arm.madds, 1e9),
        f"{fmean(arm.search_seconds.values()):.0f}",
    ]


def _mean(values: Mapping[int, float], unit: float) -> str:
    return f"{fmean(values.values()) / unit:.2f}" if values else "–"


def _caption(result: StudyResult) -> str:
    device = result.device.get("device", "unknown device")
    budget = f", budget {result.study.budget}" * bool(result.study.budget)
    if result.budget_ms:
        budget += f" of the source beside the others ({result.budget_ms:.2f} ms)"
    return f"{result.recipe.name} on {device}{budget}; AP on images that nothing was chosen on"


def markdown(result: StudyResult) -> str:
    """Return the report as Markdown."""
    ruler = ["---", *["---:"] * (len(TITLES) - 1)]
    rows = [list(TITLES), ruler, *(_row(arm) for arm in result.arms)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    lines = "\n".join(f"- {line}" for line in findings(result))
    question = result.study.question or "Which arm is better?"
    networks = "\n".join(f"- {line}" for line in _networks(result))
    return (
        f"# {question}\n\n{_caption(result)}.\n\n{table}\n\n{lines}\n\n## Networks\n\n{networks}\n"
    )


def _networks(result: StudyResult) -> list[str]:
    """Return what every arm trained; once, if it is the same for all seeds."""
    lines = []
    for arm in result.arms:
        if len(set(arm.networks.values())) == 1:
            lines.append(f"{arm.name}: {next(iter(arm.networks.values()))}")
        else:
            lines += [f"{arm.name}, seed {seed}: {told}" for seed, told in arm.networks.items()]
    return lines


def csv_text(result: StudyResult) -> str:
    """Return one line per training."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "ap", "latency_ms", "madds", "train_seconds", "search_seconds"])
    for arm in result.arms:
        for seed, ap in arm.ap.items():
            latency = arm.latency_ms.get(seed, "")
            costs = arm.madds[seed], arm.seconds[seed], arm.search_seconds[seed]
            writer.writerow([arm.name, seed, round(ap, 3), latency, *costs])
    return text.getvalue()


def write_plot(path: Path, result: StudyResult) -> None:
    """Draw AP of every training, and the mean of every arm with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.5 * len(result.arms)), layout="constrained")
    axes = figure.subplots()
    for row, arm in enumerate(result.arms):
        values = list(arm.ap.values())
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.35)
        width = arm.half_width if len(values) > 1 else 0.0
        axes.errorbar(arm.mean, row, xerr=width, fmt="D", color="black", capsize=4)
    axes.set_yticks(range(len(result.arms)), [_label(arm) for arm in result.arms])
    axes.invert_yaxis()
    axes.set_xlabel("AP; a dot per seed, mean and its 95 % interval")
    axes.set_title(result.study.question or "Which arm is better?", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _label(arm: ArmResult) -> str:
    latency = _mean(arm.latency_ms, 1)
    return arm.name if latency == "–" else f"{arm.name} ({latency} ms)"
