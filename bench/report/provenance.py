"""Where do the numbers of the page come from, and how are they made again?"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt.artifacts import file_hash
from adapt.detector.file import read_detector_info
from bench.networks.report import how_measured
from bench.report.folder import REPORT, Folder
from bench.report.found import Found
from bench.report.matches import best_threshold
from bench.report.parts import Commands, Part, Section, Table

OF_RUN = ("run.json", "scores.json", "costs.sqlite", "start.safetensors", "search/supernet.pt")


def provenance(folder: Folder, found: Found) -> Section:
    """Return how it was measured, the recipe, commands and hashes of files."""
    files = list(dict.fromkeys(_files(folder)))
    rows = [[str(_named(f, folder)), f"{f.stat().st_size / 1e6:.2f}", file_hash(f)] for f in files]
    parts: list[Part] = [Table(("file", "MB", "SHA-256"), rows)]
    recipe = _recipe(folder)
    parts += [Commands(_commands(folder, recipe, found))]
    if recipe:
        settings = [[name, _short(value)] for name, value in recipe.items()]
        parts.append(Table(("recipe", "value"), settings, long=True))
    missing = [] if recipe else ["No trained detector (.safetensors) tells the recipe."]
    lead = list(how_measured(folder.result))
    if folder.result.annotations_sha256:
        lead.append(f"SHA-256 of the annotations: {folder.result.annotations_sha256}.")
    return Section("provenance", "Where the numbers come from", lead, parts, missing)


def _files(folder: Folder) -> Iterator[Path]:
    """Yield the files that numbers of the page come from, those that there are."""
    yield folder.report / REPORT
    for entry in folder.detectors:
        stem = entry.artifact.stem
        artifact, trained = folder.artifact(entry), folder.trained(entry)
        stored = folder.report / entry.detections if entry.detections else None
        log = folder.beside(entry, f"{stem}.training.jsonl")
        yield from (f for f in (artifact, trained, stored, log) if f and f.is_file())
    yield from filter(None, map(folder.of_run, OF_RUN))


def _named(file: Path, folder: Folder) -> Path:
    """Return a file as seen from the run's folder, if it lies in it."""
    top = folder.run or folder.report
    return file.relative_to(top) if file.is_relative_to(top) else file


def _recipe(folder: Folder) -> dict[str, Any]:
    """Return the recipe that the best detector was trained by; empty if nothing tells."""
    trained = folder.trained(folder.chosen)
    content = read_detector_info(trained)[1] if trained else {}
    recipe: dict[str, Any] = content.get("recipe", {})
    return recipe


def _short(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return ", ".join(f"{name} = {json.dumps(one)}" for name, one in value.items())


def _commands(folder: Folder, recipe: dict[str, Any], found: Found) -> list[str]:
    """Return how to measure again, to use the best detector, and to write the page again."""
    result, data = folder.result, recipe.get("data", {})
    files = [str(folder.artifact(entry)) for entry in folder.detectors]
    root, split = data.get("root") or "DATASET", data.get("test") or data.get("val") or ""
    measured = ["adapt", "bench", *files, "--data", root, *(["--split", split] if split else [])]
    measured += ["--threads", str(result.threads), "--rounds", str(result.protocol.rounds)]
    shown = ["adapt", "predict", str(folder.artifact(folder.chosen)), "PHOTOS"]
    if found.split:
        threshold = best_threshold(found.matches[folder.chosen.name])
        shown += ["--score", f"{threshold:.2f}"]
    page = ["adapt", "report", str(folder.run or folder.report)]
    return [shlex.join(line) for line in (measured, shown, page)]
