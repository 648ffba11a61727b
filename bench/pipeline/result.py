"""What did a run end with, and how is it told?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.architecture import Architecture
from bench.networks.measure import BenchResult
from search.derive.decision import Decision


@dataclass(frozen=True)
class RunResult:
    """What a run ended with.

    Attributes:
        bench: Derived and source detector, measured together; None if this machine cannot run them.
        derived: Architecture of the derived backbone.
        rule: By which rule it was derived.
        decision: How far the search had decided that it was derived from.
        predicted_ms: Latency of the derived detector by the cost table, as its certificate corrects
            it; None without a table.
        deployed: What is known of the deployed files, by the name of the detector.
        report: The report's Markdown file; None without a benchmark.
        not_measured: What could not be measured here and how to do it elsewhere; empty if all was.
        stages: What happened to each stage: ``ran`` or ``reused``.
    """

    bench: BenchResult | None
    derived: Architecture
    rule: str
    decision: Decision
    predicted_ms: float | None
    deployed: Mapping[str, Mapping[str, Any]]
    report: Path | None
    not_measured: str
    stages: dict[str, str]

    def summary(self) -> list[str]:
        """Return the derived network and where the report is, as lines of text."""
        lines = [f"derived: {self.derived}", *self.findings()]
        return [*lines, f"report: {self.report}"] if self.report else lines

    def findings(self) -> list[str]:
        """Return what the report's table does not say, as lines of text."""
        lines = [f"derived by: {self.rule}"]
        if self.decision.doubt:
            lines.append(f"doubt: {self.decision.doubt}")
        if self.predicted_ms is not None:
            lines.append(self._prediction())
        for name, of in self.deployed.items():
            if "ap_gate" in of:
                lines.append(f"{name}: {_gate(of)}")
        return [*lines, f"not measured: {self.not_measured}"] if self.not_measured else lines

    def _prediction(self) -> str:
        """Return prediction and measurement, by the statistic of the table: the minimum."""
        line = f"latency of the derived detector: {self.predicted_ms:.2f} ms predicted"
        if self.bench is None:
            return line
        (measured,) = (e.latency for e in self.bench.entries if e.name == "derived")
        return f"{line}, {measured.min_ms:.2f} ms measured (minimum)"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "bench": self.bench.to_dict() if self.bench else None,
            "derived": self.derived.to_dict(),
            "rule": self.rule,
            "decided": self.decision.to_dict(),
            "predicted_ms": self.predicted_ms,
            "deployed": self.deployed,
            "report": str(self.report) if self.report else None,
            "not_measured": self.not_measured,
            "stages": self.stages,
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
