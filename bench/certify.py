"""How far can a cost table be trusted to predict whole detectors?"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.architecture import Architecture
from adapt.cost_table import CostTable, predict_latency
from adapt.detector import DetectorConfig
from adapt.detector_file import DetectorInfo
from adapt.errors import AdaptError
from adapt.images import InputSize
from adapt.progress import Progress, silent
from adapt.space import SearchSpace
from adapt.supernet import architecture_of
from bench.profiler import ANCHOR, ort_call
from bench.timing import Anchor, Call, Protocol, measure
from bench.unit_graphs import unit_model
from export.graph import export_detector

DETECTORS = 30
WHOLE_PROTOCOL = Protocol(rounds=5, round_ms=100.0)
CHUNK = 6  # detectors whose sessions are open at once


@dataclass(frozen=True)
class Certificate:
    """Predicted against measured latency of random detectors that are not in the table.

    Attributes:
        detectors: How many.
        mape: Mean absolute error, as a share of the measured latency.
        bias: Mean error, as a share of the measured latency; positive if predicted too slow.
        kendall_tau: Rank correlation; 1 if every pair is ordered rightly.
        worst: Largest absolute error, as a share of the measured latency.
        scale: Slope of the least-squares line from predicted to measured latency.
        offset_ms: Its intercept.
        mape_corrected: MAPE after this correction.
        drifted: Detectors that met a slow machine in most rounds.
        seed: Seed of the random detectors.
    """

    detectors: int
    mape: float
    bias: float
    kendall_tau: float
    worst: float
    scale: float
    offset_ms: float
    mape_corrected: float
    drifted: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)

    @classmethod
    def of(
        cls, predicted: Sequence[float], measured: Sequence[float], *, drifted: int, seed: int
    ) -> "Certificate":
        """Compare predictions with measurements, both in milliseconds."""
        from scipy.stats import kendalltau

        guess, truth = np.asarray(predicted), np.asarray(measured)
        error = guess / truth - 1
        scale, offset = np.polyfit(guess, truth, 1)
        corrected = (scale * guess + offset) / truth - 1
        return cls(
            detectors=len(truth),
            mape=float(np.abs(error).mean()),
            bias=float(error.mean()),
            kendall_tau=float(kendalltau(guess, truth).statistic),
            worst=float(np.abs(error).max()),
            scale=float(scale),
            offset_ms=float(offset),
            mape_corrected=float(np.abs(corrected).mean()),
            drifted=drifted,
            seed=seed,
        )


def random_architecture(space: SearchSpace, chance: random.Random) -> Architecture:
    """Draw every choice of a space uniformly."""
    ops = [
        [chance.randrange(len(block.candidates(position))) for position in range(block.num_ops)]
        for block in space.blocks
    ]
    return architecture_of(space, ops, [chance.randrange(len(b.widths)) for b in space.blocks])


def certify(
    table: CostTable,
    space: SearchSpace,
    detector: DetectorConfig,
    size: InputSize,
    *,
    detectors: int = DETECTORS,
    protocol: Protocol = WHOLE_PROTOCOL,
    seed: int = 0,
    progress: Progress = silent,
) -> Certificate:
    """Measure random whole detectors, compare with the table's predictions, and store the result.

    Args:
        table: A writable table of this machine that covers the space.
        space: Space the detectors are drawn from.
        detector: The detector around the backbone.
        size: Letterbox of the detector.
        detectors: How many, at least 3.
        protocol: How much to measure of each.
        seed: Seed of the detectors and of the order of measurement.
        progress: Told after every detector that was built, and every one that was measured.

    Raises:
        AdaptError: If the table lacks a unit, or there are too few detectors.
    """
    if detectors < 3:
        raise AdaptError(f"a certificate needs at least 3 detectors, got {detectors}")
    chance = random.Random(seed)
    networks = [random_architecture(space, chance) for _ in range(detectors)]
    predicted = [predict_latency(table, network, detector, size) for network in networks]
    measured: list[float] = []
    drifted = 0
    anchor = Anchor(ort_call(unit_model(ANCHOR), table.conditions.threads))
    for start in range(0, detectors, CHUNK):
        chunk = networks[start : start + CHUNK]
        calls: dict[str, Call] = {}
        for index, network in enumerate(chunk):
            model = _random_model(network, detector, size, seed)
            calls[str(index)] = ort_call(model, table.conditions.threads)
            progress(2 * start + index + 1, 2 * detectors)
        latencies = measure(calls, protocol, anchor=anchor, seed=seed).values()
        measured += [latency.min_ms for latency in latencies]
        drifted += sum(2 * latency.drifted > protocol.rounds for latency in latencies)
        progress(2 * (start + len(chunk)), 2 * detectors)
    certificate = Certificate.of(predicted, measured, drifted=drifted, seed=seed)
    table.store_certificate(certificate.to_dict(), of="certificate")
    return certificate


def _random_model(
    network: Architecture, detector: DetectorConfig, size: InputSize, seed: int
) -> bytes:
    """Return the deployed graph of a detector with random weights."""
    torch.manual_seed(seed)
    classes = tuple(f"class {number}" for number in range(detector.num_classes))
    info = DetectorInfo(network, detector, size, classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        export_detector(info.build().eval(), info, path, provenance={})
        return path.read_bytes()
