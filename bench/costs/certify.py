"""How well does a cost table predict the latency of whole detectors? (some are measured)"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.resolution import check_resolution
from adapt.cost.table import CostTable, predict_latency
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.costs.sample import sampled
from bench.latency.subject import WholeDetector
from bench.latency.timing import Protocol
from bench.latency.workers import Measurement, Workers

FloatArray = NDArray[np.float64]
DETECTORS = 30
# Ten rounds, not four: two measurements of 24 detectors in four rounds each differed in their order
# (Kendall tau 0.97) as much as the best table differs from a measurement.
WHOLE_PROTOCOL = Protocol(rounds=10, round_ms=100.0)


@dataclass(frozen=True)
class Certificate:
    """Predicted against measured latency of whole detectors.

    Attributes:
        detectors: How many.
        mape: Mean absolute error, as a share of the measured latency.
        bias: Mean error, as a share of the measured latency; positive if predicted too slow.
        kendall_tau: Rank correlation; 1 if every pair is ordered rightly.
        worst: Largest absolute error, as a share of the measured latency.
        scale: Slope of the line from predicted to measured latency, see :func:`correcting_line`.
        offset_ms: Its intercept.
        mape_corrected: MAPE after this correction, each detector corrected by the line that is
            fitted to the others.
        drifted: Detectors that met a slow machine in most rounds.
        seed: Seed of the detectors.
        range_ms: Lowest and highest prediction, those of the cheapest and the dearest detector.
        predicted_ms: Prediction for each detector.
        measured_ms: Minimum latency of each detector.
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
    range_ms: tuple[float, float]
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]

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
        scale, offset = correcting_line(guess, truth)
        return cls(
            detectors=len(truth),
            mape=float(np.abs(error).mean()),
            bias=float(error.mean()),
            kendall_tau=float(kendalltau(guess, truth).statistic),
            worst=float(np.abs(error).max()),
            scale=scale,
            offset_ms=offset,
            mape_corrected=float(np.abs(_corrected(guess, truth) / truth - 1).mean()),
            drifted=drifted,
            seed=seed,
            range_ms=(float(guess.min()), float(guess.max())),
            predicted_ms=tuple(guess.tolist()),
            measured_ms=tuple(truth.tolist()),
        )


def correcting_line(guess: FloatArray, truth: FloatArray) -> tuple[float, float]:
    """Return slope and intercept of the line that corrects predictions.

    It is the least-squares line, if that rises and is positive where detectors are. Where noise is
    as large as the detectors' differences it may be neither, and a search that it corrects would
    look for the dearest network, and take logarithms of negative costs. Such measurements tell only
    the level: the line is then the least-squares one through the origin.

    Args:
        guess: Tensor[N], predicted latencies in ms.
        truth: Tensor[N], measured ones.
    """
    scale, offset = (float(number) for number in np.polyfit(guess, truth, 1))
    if scale > 0 and scale * guess.min() + offset > 0:
        return scale, offset
    return float(guess @ truth / (guess @ guess)), 0.0


def _corrected(guess: FloatArray, truth: FloatArray) -> FloatArray:
    """Return each prediction corrected by the line that is fitted to all other detectors."""
    corrected = []
    for index in range(len(guess)):
        others = np.arange(len(guess)) != index
        scale, offset = correcting_line(guess[others], truth[others])
        corrected.append(scale * guess[index] + offset)
    return np.array(corrected)


def certify(
    table: CostTable,
    detectors: DetectorSpace,
    how: Measurement,
    number: int = DETECTORS,
    *,
    progress: Progress = silent,
) -> Certificate:
    """Measure whole detectors, compare with the table's predictions, and store the result.

    Half of the detectors are random, half lie evenly over the predicted latency, ends included.

    Args:
        table: A writable table of this machine and backend that covers the detectors.
        detectors: What they are drawn from.
        how: The backend of the table, and how much is measured of each detector; its seed draws
            the detectors too.
        number: How many detectors, at least 4.
        progress: Told after every round.

    Raises:
        AdaptError: If the table lacks a unit or has no latency for many, there are too few
            detectors, or one cannot be measured.
    """
    if number < 4:
        raise AdaptError(f"a certificate needs at least 4 detectors, got {number}")
    check_resolution(table, detectors.units())
    model = detectors.costs(table.lookup)
    choices = sampled(detectors.space, model, number, random.Random(how.seed))
    networks = [chosen.architecture(detectors.space) for chosen in choices]
    around = detectors.detector, detectors.size
    predicted = [predict_latency(table, network, *around) for network in networks]
    with Workers(how, anchor_ms=table.anchor_ms) as workers:
        latencies = workers.latencies(
            [WholeDetector(network, *around) for network in networks],
            name="a whole detector",
            fix="free memory or choose fewer with --detectors",
            progress=progress,
        )
    certificate = Certificate.of(
        predicted,
        [latency.min_ms for latency in latencies],
        drifted=sum(latency.mostly_drifted for latency in latencies),
        seed=how.seed,
    )
    table.store("certificate", certificate.to_dict())
    return certificate
