"""What is verified where? Writes `docs/verified.md` from reports of `adapt doctor --verify`.

python docs/verified.py [REPORT ...]

A report that is named is first kept in `bench/results/verify`, under the name of what it verified.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "verified.md"
REPORTS = ROOT / "bench" / "results" / "verify"
Report = dict[str, Any]

OPENING = """# What is verified where

Which part really ran on which device, in which versions, and which never did?

`python docs/verified.py` writes this page from the reports in `bench/results/verify/`; a test
compares the two. Add yours with `adapt doctor --verify --report REPORT.json` and `python
docs/verified.py REPORT.json`. What passes is said under [The first hour on a
GPU](tensorrt-a100.md#the-first-hour-on-a-gpu), what tests on simulated GPUs show under [What was
verified, and where](tensorrt-a100.md#what-was-verified-and-where).
"""
NO_GPU = """
**Nothing was verified on a GPU yet:** no report is of a machine that has one. Whatever this
repository says of CUDA and TensorRT was written for it, and tried without it.
"""


def reports() -> list[tuple[str, Report]]:
    """Return the name and content of every report that is kept, by name."""
    return [(path.name, json.loads(path.read_text())) for path in sorted(REPORTS.glob("*.json"))]


def page(named: Sequence[tuple[str, Report]]) -> str:
    """Return the whole page."""
    on_gpus = [report for _, report in named if _gpu(report)]
    return OPENING + ("" if on_gpus else NO_GPU) + "".join(_section(*each) for each in named)


def name_of(report: Report) -> str:
    """Return the file name that states device, runtimes and versions."""
    machine = report["machine"]
    tried = {key.removeprefix("runtime "): machine[key] for key in machine if "runtime " in key}
    versions = [
        f"{runtime}-{state['version'].partition('+')[0]}"
        for runtime, state in tried.items()
        if state["usable"] or state["builds"]
    ]
    device = re.sub(r"[^a-z0-9]+", "-", _device(report).lower()).strip("-")
    return "_".join((device, *versions)) + ".json"


def _section(name: str, report: Report) -> str:
    made_with = ", ".join(
        f"{library} {version}" for library, version in report["made_with"].items()
    )
    lines = [
        f"\n## {_device(report)}\n",
        f"{report['summary'][0]}, with {made_with}; {'' if _gpu(report) else 'no GPU; '}"
        f"{report['machine']['device']['system']}. [Report](../bench/results/verify/{name})\n",
        "| part | passed | failed, or not tried |",
        "|---|---|---|",
        *_rows(report["steps"]),
    ]
    return "\n".join(lines) + "\n"


def _rows(steps: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a row of the table for every part, such as a runtime in a precision."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for step in steps:
        parts.setdefault(step["title"].partition(": ")[0], []).append(step)
    for part, its_steps in parts.items():
        passed = [_what(step) or "yes" for step in its_steps if step["status"] == "PASS"]
        other = [_why(step) for step in its_steps if step["status"] != "PASS"]
        yield f"| {part} | {'; '.join(passed)} | {'; '.join(other)} |"


def _what(step: dict[str, Any]) -> str:
    """Return what of a part a step verifies; nothing if it is all of it."""
    return str(step["title"].partition(": ")[2])


def _why(step: dict[str, Any]) -> str:
    """Return why a step did not pass; what to do about it is for the user of that machine."""
    reason = " ".join(step["reason"].partition("; ")[0].split()).replace("|", "\\|")
    told = f"**failed**: {reason}" if step["status"] == "FAIL" else reason
    return f"{_what(step)}: {told}" if _what(step) else told


def _device(report: Report) -> str:
    return str(_gpu(report) or report["machine"]["device"]["device"])


def _gpu(report: Report) -> str:
    """Return the name of the machine's GPU, or nothing."""
    return str(report["machine"]["device"].get("gpu", {}).get("name", ""))


if __name__ == "__main__":
    REPORTS.mkdir(exist_ok=True)
    for path in map(Path, sys.argv[1:]):
        shutil.copy(path, REPORTS / name_of(json.loads(path.read_text())))
    PAGE.write_text(page(reports()), encoding="utf-8")
