"""What did a run end with, and how is it told?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.networks.measure import BenchResult
from bench.pipeline.choice import DERIVED, SCALED, SOURCE, Network
from bench.report.page import PAGE
from search.derive.ledger import read_ledger, table

TITLES = {DERIVED: "derived", SCALED: "source scaled in width", SOURCE: "source"}


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        bench: Derived and source detector, measured together; None if this machine cannot run them.
        networks: What was compared, the source last.
        decided: How far what networks were derived from can be relied on, see
            :func:`search.derive.decision.decided`.
        predicted_ms: Latency of every derived detector by the cost table, as its certificate
            corrects it, by the network's name; empty without a table.
        files: The deployed files, by the name of the detector.
        deployed: What is known of them.
        report: The report's Markdown file; None without a benchmark.
        not_measured: What could not be measured here and how to do it elsewhere; empty if all was.
        stages: What happened to each stage: ``ran`` or ``reused``.
    """

    bench: BenchResult | None
    networks: Sequence[Network]
    decided: Mapping[str, Any]
    predicted_ms: Mapping[str, float]
    files: Mapping[str, Path]
    deployed: Mapping[str, Mapping[str, Any]]
    report: Path | None
    not_measured: str
    stages: dict[str, str]

    def summary(self) -> list[str]:
        """Return the derived networks and where the report is, as lines of text."""
        derived = [network for network in self.networks if network.family == DERIVED]
        lines = [f"{network.name}: {network.architecture}" for network in derived]
        lines += self.findings()
        if not self.report:
            return lines
        lines += [f"report: {self.report}", f"page: {self.report.with_name(PAGE)}"]
        return [*lines, *(f"next: adapt predict {self.files[one.name]} PHOTOS" for one in derived)]

    def findings(self) -> list[str]:
        """Return what the report's table does not say, as lines of text."""
        lines = [f"{n.name} by: {n.rule}" for n in self.networks if n.family != SOURCE]
        for network in self.networks:
            lines += [f"{network.name} raced: {one}" for one in network.race]
        if (tau := self.decided.get("tau")) is not None:
            lines.append(f"sums of scores rank random networks with a Kendall tau of {tau:.2f}")
        if self.decided["doubt"]:
            lines.append(f"doubt: {self.decided['doubt']}")
        lines += [self._prediction(name) for name in self.predicted_ms]
        for name, of in self.deployed.items():
            if "ap_gate" in of:
                lines.append(f"{name}: {_gate(of)}")
        return [*lines, f"not measured: {self.not_measured}"] if self.not_measured else lines

    def details(self) -> list[str]:
        """Return what each block of derived networks saved and lost, as lines of Markdown."""
        lines = []
        for network in self.networks:
            entries, unit = read_ledger(network.content, network.file)
            if entries:
                lines += ["", f"### {network.name}, block by block", "", *table(entries, unit)]
        how = (
            "Costs are those of the table, for the input and heads of the recipe. A rise is that "
            "of the held-out loss when one part of the trained source is replaced, before any "
            "training; a block's are summed up."
        )
        return ["", "## What was chosen, and why", "", how, *lines] if lines else []

    def families(self) -> dict[str, list[str]]:
        """Return the names of networks that were found in one way, where there are several."""
        families: dict[str, list[str]] = {}
        for network in self.networks:
            families.setdefault(TITLES[network.family], []).append(network.name)
        return families if len(self.networks) > 2 else {}

    def _prediction(self, name: str) -> str:
        """Return prediction and measurement, by the statistic of the table: the minimum."""
        line = f"latency of {name}: {self.predicted_ms[name]:.2f} ms predicted"
        if self.bench is None:
            return line
        (measured,) = (e.latency for e in self.bench.entries if e.name == name)
        return f"{line}, {measured.min_ms:.2f} ms measured (minimum)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "bench": self.bench.to_dict() if self.bench else None,
            "networks": {network.name: self._described(network) for network in self.networks},
            "decided": {k: v for k, v in self.decided.items() if k != "doubt"},
            "files": {name: str(file) for name, file in self.files.items()},
            "deployed": self.deployed,
            "report": str(self.report) if self.report else None,
            "not_measured": self.not_measured,
            "stages": self.stages,
        }

    def _described(self, network: Network) -> dict[str, Any]:
        return {
            "family": network.family,
            "architecture": network.architecture.to_dict(),
            "rule": network.rule,
            "predicted_ms": self.predicted_ms.get(network.name),
        }


def _gate(deployed: Mapping[str, Any]) -> str:
    """Return what a deployed file lost, in one line."""
    gate = deployed["ap_gate"]
    of_engine = gate["ap_engine"]
    which = "the ONNX file" if of_engine is None else "the engine"
    ap = gate["ap_artifact"] if of_engine is None else of_engine
    kept = gate["kept_in_fp32"]
    note = f", {len(kept)} convolutions not quantised" if kept else ""
    return (
        f"AP {ap:.1f} of {which} ({deployed['precision']}{note}), {gate['ap_torch']:.1f} of fp32 "
        f"PyTorch, on the {gate['images']} images of the gate"
    )
