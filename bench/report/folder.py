"""Which files does the page of a run, or of a benchmark, read?"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapt.artifacts import check_header, read_json
from adapt.detector.file import DetectorInfo, read_detector_info
from adapt.errors import AdaptError
from bench.networks.measure import BenchResult, Entry
from bench.networks.report import read_report
from export.run.pair import deployed_header

REPORT, RUN = "report.json", "run.json"
PORTRAIT = " (portrait)"  # ends the name of the second row of two files that run as one
KNOWN = "source"  # the detector that others are compared with, by its name


@dataclass(frozen=True)
class Folder:
    """The files of a run, or of a benchmark alone.

    Attributes:
        report: Folder of the report.
        result: What was measured.
    """

    report: Path
    result: BenchResult

    @classmethod
    def open(cls, path: Path) -> "Folder":
        """Find the report in the folder of a run, of one of its devices, or of a benchmark.

        Raises:
            AdaptError: If there is none, or several, or it cannot be read.
        """
        places = (path, path / "report")
        found = [place for place in places if (place / REPORT).is_file()]
        found = found or sorted(file.parent for file in path.glob(f"*/report/{REPORT}"))
        if len(found) == 1:
            return cls(found[0], read_report(found[0] / REPORT))
        raise AdaptError(_why_not(path, found))

    @cached_property
    def detectors(self) -> list[Entry]:
        """The measured detectors; two files that run as one count once."""
        return [entry for entry in self.result.entries if not entry.name.endswith(PORTRAIT)]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [entry.name for entry in self.detectors]

    @property
    def source(self) -> Entry | None:
        """The detector that others are compared with."""
        return next((entry for entry in self.detectors if entry.name == KNOWN), None)

    @property
    def chosen(self) -> Entry:
        """The detector with the highest AP, the source left out where there are others."""
        others = [entry for entry in self.detectors if entry.name != KNOWN] or self.detectors
        return max(others, key=lambda entry: entry.metrics.ap)

    @property
    def run(self) -> Path | None:
        """Folder of the run that the detectors are of; None if there is none, or several."""
        measured = {self.artifact(entry).parent for entry in self.detectors}
        places = [self.report.parent, self.report.parent.parent]
        places += measured if len(measured) == 1 else []
        return next((place for place in places if (place / RUN).is_file()), None)

    def artifact(self, entry: Entry) -> Path:
        """Return the measured file: beside the report, if the run was moved, or where it was."""
        beside = self.report.parent / entry.artifact.name
        return beside if beside.is_file() else entry.artifact

    def beside(self, entry: Entry, *names: str) -> Path | None:
        """Return the first of these files beside a detector, or in the folder of the whole run."""
        own = self.artifact(entry).parent
        places = [own, *([self.run] if self.run else [])]
        paths = (place / name for name in names for place in places)
        return next((path for path in paths if path.is_file()), None)

    def of_run(self, name: str) -> Path | None:
        """Return a file of the run that belongs to no detector alone."""
        if not self.run:
            return None
        own = self.artifact(self.chosen).parent
        paths = (own / name, self.run / name)
        return next((path for path in paths if path.is_file()), None)

    def info(self, entry: Entry) -> DetectorInfo | None:
        """Return how a detector is built; None if none of its files is left.

        Raises:
            AdaptError: If its file is damaged.
        """
        trained = self.trained(entry)
        if trained:
            return read_detector_info(trained)[0]
        artifact = self.artifact(entry)
        if not artifact.is_file():
            return None
        return DetectorInfo.from_dict(deployed_header(artifact))

    def trained(self, entry: Entry) -> Path | None:
        """Return the trained detector that a file was exported from."""
        return self.beside(entry, f"{entry.artifact.stem}.safetensors")

    def architecture_file(self, entry: Entry) -> Path | None:
        """Return the file that says how a network was found, if it is there."""
        stem = entry.artifact.stem
        path = self.beside(entry, f"{re.sub('^derived', 'arch', stem)}.json", f"{stem}.json")
        return path if path and _is_architecture(path) else None

    def architecture(self, entry: Entry) -> dict[str, Any]:
        """Return what is known of how a network was found; empty without its file.

        Raises:
            AdaptError: If the file is damaged.
        """
        path = self.architecture_file(entry)
        return check_header(read_json(path, "architecture"), "architecture", path) if path else {}


def _is_architecture(path: Path) -> bool:
    """Whether a file that has a detector's name is its architecture; a study's result is not."""
    content = read_json(path, "architecture")
    return isinstance(content, dict) and content.get("format") == "adapt-architecture"


def _why_not(path: Path, found: list[Path]) -> str:
    """Say why no report is read."""
    if found:
        names = ", ".join(map(str, found))
        return f"{path} holds the reports of several devices, {names}; pass one of them"
    if not path.is_dir():
        return f"{path} is no folder; pass the folder of a run, such as runs/NAME"
    if (path / RUN).is_file():
        return (
            f"{path} holds a run that was not benchmarked: {path / 'report' / REPORT} is missing; "
            "finish it with `adapt run`, or measure its files with `adapt bench`"
        )
    return (
        f"{path} is not the folder of a run: it holds neither {RUN} nor {REPORT}; pass what "
        "`adapt run` or `adapt bench` wrote"
    )
