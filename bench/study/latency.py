"""How fast are the deployed detectors of a study? (all of them in interleaved rounds)"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from adapt.artifacts import (
    check_header,
    content_hash,
    file_hash,
    header,
    parsing,
    read_json,
    typed,
    write_json,
)
from adapt.data.coco import CocoSplit
from adapt.progress import Progress
from bench.latency.provenance import device_description
from bench.latency.timing import Latency
from bench.networks.artifacts import Artifacts
from bench.networks.measure import DETECTOR_PROTOCOL, Timing, time_artifacts
from bench.study.trial import Trial

REPEATED = 0.1  # share of the detectors that is measured again at the end
DRIFT = 0.02  # share by which a second measurement may differ


@dataclass(frozen=True)
class Latencies:
    """Latencies of the deployed detectors of a study.

    Attributes:
        min_ms: Minimum of each training's detector, by its name: what budgets are met by.
        p50_ms: Median of each.
        drift: Largest share by which a minimum differed when some were measured again.
        device: The machine as it was when they were measured.
    """

    min_ms: dict[str, float]
    p50_ms: dict[str, float]
    drift: float
    device: Mapping[str, Any]


def measure_latencies(trials: Sequence[Trial], path: Path, progress: Progress) -> Latencies:
    """Measure the deployed detectors, and some of them again; reuse what ``path`` holds.

    Latencies of a machine that changed its speed are void: they are measured anew, and kept if the
    machine was steadier then.

    Args:
        trials: Trainings whose deployed files are here.
        path: Where the latencies are stored.
        progress: Told after every sample.
    """
    told = [field.name for field in fields(Latencies)]  # files of earlier versions tell less
    key = content_hash([told, *([trial.name, file_hash(trial.artifact)] for trial in trials)])
    known = _stored(path, key, told)
    if known and known.drift <= DRIFT:
        return known
    measured = _measured(trials, progress)
    if known and known.drift <= measured.drift:
        return known
    write_json(path, header("study-latency", key=key, **vars(measured)))
    return measured


def _stored(path: Path, key: str, told: Sequence[str]) -> Latencies | None:
    """Return what was measured of the same files; None if nothing was."""
    if path.is_file():
        content = check_header(read_json(path, "latencies"), "study-latency", path)
        if content.get("key") == key:
            with parsing("latencies", path, "delete it, so that they are measured again"):
                return typed(Latencies, {name: content[name] for name in told})
    return None


def _measured(trials: Sequence[Trial], progress: Progress) -> Latencies:
    if not trials:
        return Latencies({}, {}, 0.0, device_description())
    recipe = trials[0].recipe
    device, split = recipe.device, recipe.split(recipe.data.test)
    protocol = replace(DETECTOR_PROTOCOL, rounds=device.rounds)
    timing = Timing(device.threads, device.batch, protocol)
    first = _timed(trials, split, timing, progress)
    step = math.ceil(1 / REPEATED)
    again = _timed(trials[::step], split, timing, progress)
    drift = max(abs(again[name].min_ms / first[name].min_ms - 1) for name in again)
    return Latencies(
        {name: latency.min_ms for name, latency in first.items()},
        {name: latency.p50_ms for name, latency in first.items()},
        drift,
        device_description(),
    )


def _timed(
    trials: Sequence[Trial], split: CocoSplit, timing: Timing, progress: Progress
) -> dict[str, Latency]:
    artifacts: Artifacts = {
        trial.name: (trial.recipe.device.runtime, trial.artifact) for trial in trials
    }
    return time_artifacts(artifacts, split, timing, progress=progress)
