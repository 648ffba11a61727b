"""Is one detector better than another, and how sure is that? (`adapt compare`)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from adapt.data.bootstrap import SAMPLES, bootstrapped
from adapt.data.coco import CocoSplit
from adapt.data.evaluate import Metrics, coco_evaluation
from adapt.errors import AdaptError
from adapt.machine import usable_cores
from adapt.progress import Progress, part_of, silent
from bench.latency.timing import Latency
from bench.networks.evaluation import evaluate_runner, matched
from bench.networks.measure import Timing, time_artifacts
from bench.peers.runner import open_detector
from export.run.runner import usual_runtime

INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class PairResult:
    """Two detectors on the same images.

    Attributes:
        names: The first, and the second, which is judged.
        images: Images of both.
        ap: AP of each, in percent.
        difference: AP of the second less that of the first, in percent.
        difference_interval: Its 95 % interval over images that are drawn with replacement. Another
            training differs by more than that.
        ms: Median latency of each.
        ratio: Latency of the second, in latencies of the first.
        ratio_range: Its range over the rounds in which both were timed.
    """

    names: tuple[str, str]
    images: int
    ap: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    ms: tuple[float, float]
    ratio: float
    ratio_range: tuple[float, float]

    @property
    def worse(self) -> bool:
        """Whether the second was shown to find less, or to be slower."""
        return self.difference_interval[1] < 0 or self.ratio_range[0] > 1

    @property
    def verdict(self) -> str:
        """What was shown, in one sentence."""
        low, high = self.difference_interval
        first, second = self.names
        found = f"{self.difference:+.2f} AP [{low:+.2f}, {high:+.2f}] on {self.images} images"
        slow, slower = self.ratio_range
        time = f"{self.ratio:.3f} of its time [{slow:.3f}, {slower:.3f}]"
        better = "finds more than" if low > 0 else "finds less than" if high < 0 else ""
        faster = "is faster" if slower < 1 else "is slower" if slow > 1 else ""
        quality = f"{better} {first}" if better else f"is not shown to differ in AP from {first}"
        speed = faster or "is not shown to differ in latency"
        return f"{second} {quality} ({found}), and {speed} ({time})"

    def readable(self) -> dict[str, Any]:
        """Return what people read."""
        rows = [
            f"{name}: AP {ap:.1f}, {ms:.4g} ms"
            for name, ap, ms in zip(self.names, self.ap, self.ms, strict=True)
        ]
        return {"detectors": rows, "verdict": self.verdict}

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return vars(self) | {"worse": self.worse, "verdict": self.verdict}


def compare_pair(
    first: Path,
    second: Path,
    split: CocoSplit,
    timing: Timing,
    samples: int = SAMPLES,
    progress: Progress = silent,
) -> PairResult:
    """Evaluate two detectors on the same images, and time them in turns.

    Args:
        first: A detector file, or the folder of a run, whose ``derived`` is meant.
        second: The one that is judged.
        split: Images and boxes.
        timing: How to time.
        samples: Draws of the bootstrap.
        progress: Told of all steps together.

    Raises:
        AdaptError: If one cannot run here, or a folder holds no detector or several.
    """
    files = {"first": detector_of(first), "second": detector_of(second)}
    artifacts = {name: (usual_runtime(file), file) for name, file in files.items()}
    found, evaluations = list[Metrics](), list[COCOeval]()
    for place, (runtime, file) in enumerate(artifacts.values()):
        with open_detector(runtime, file, usable_cores()) as runner:
            here = part_of(progress, place, 4)
            metrics, detections = evaluate_runner(runner, split, progress=here)
            most = runner.most_detections
            found.append(metrics)
            evaluations.append(coco_evaluation(matched(split, runner), detections, most))
    aps = 100 * bootstrapped(evaluations, samples, progress=part_of(progress, 2, 4))
    latencies = time_artifacts(artifacts, split, timing, progress=part_of(progress, 3, 4))
    return _result((str(first), str(second)), found, aps, latencies, len(split))


def detector_of(path: Path) -> Path:
    """Return the file of a detector, or the one that a run ended with.

    Raises:
        AdaptError: If a folder holds none, or several.
    """
    if not path.is_dir():
        return path
    found = sorted({*path.glob("derived*.onnx")} - {*path.glob("*.portrait.onnx")})
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise AdaptError(f"{path} holds {names} instead of one derived detector; pass a file")
    return found[0]


def _result(
    names: tuple[str, str],
    metrics: Sequence[Metrics],
    aps: NDArray[np.float64],
    latencies: Mapping[str, Latency],
    images: int,
) -> PairResult:
    first_ap, second_ap = (100 * of.ap for of in metrics)
    low, high = np.quantile(aps[:, 1] - aps[:, 0], INTERVAL)
    one, other = latencies["first"], latencies["second"]
    least, most = (
        other.p50_range_ms[0] / one.p50_range_ms[1],
        other.p50_range_ms[1] / one.p50_range_ms[0],
    )
    return PairResult(
        names=names,
        images=images,
        ap=(first_ap, second_ap),
        difference=second_ap - first_ap,
        difference_interval=(float(low), float(high)),
        ms=(one.p50_ms, other.p50_ms),
        ratio=other.p50_ms / one.p50_ms,
        ratio_range=(least, most),
    )
