"""What do the mAP and the latency of the same artifact come to?"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import from_numpy

from adapt.artifacts import library_versions, make_folder, write_text
from adapt.cost.units import detector_units, madds
from adapt.data.coco import CocoImage, CocoSplit, read_image
from adapt.data.evaluate import Detections, Metrics, coco_results, detections_to_original, evaluate
from adapt.data.images import InputSize, fit
from adapt.detector.file import DetectorInfo
from adapt.detector.retinanet import count_parameters
from adapt.errors import AdaptError
from adapt.progress import Progress, silent
from bench.latency.backend import OrtBackend
from bench.latency.provenance import device_description
from bench.latency.subject import ANCHOR
from bench.latency.timing import Anchor, Latency, Protocol, Timer, measure, wall_timer
from export.run.runner import (
    ARTIFACTS,
    Runner,
    batch_of_one,
    check_artifact,
    open_runner,
    usual_runtime,
)

DETECTOR_PROTOCOL = Protocol(rounds=10, round_ms=500.0)
Artifacts = Mapping[str, tuple[str, Path]]  # name -> (runtime, file)


@dataclass(frozen=True)
class Entry:
    """What was measured of one artifact on one runtime.

    Attributes:
        name: Name in the report.
        artifact: The file.
        runner: Runtime, version, device and threads, as the runner describes itself.
        precision: ``fp32``, ``fp16`` or ``int8``.
        architecture: Hash of the backbone's architecture.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        metrics: COCO metrics of the detections this runtime made.
        latency: Latency of this runtime with one image, pre-processing not included.
        madds: Multiply-adds of the whole detector, as Table II counts them.
        params: Parameters of the whole detector.
        size_mb: Size of the file in 10^6 bytes.
    """

    name: str
    artifact: Path
    runner: dict[str, Any]
    precision: str
    architecture: str
    height: int
    width: int
    metrics: Metrics
    latency: Latency
    madds: float
    params: int
    size_mb: float


@dataclass(frozen=True)
class BenchResult:
    """Everything a benchmark measured, and how.

    Attributes:
        entries: The artifacts in the order they were given.
        annotations: File of the evaluated split.
        images: Number of evaluated images.
        threads: CPU threads of one inference.
        protocol: How much was timed.
        device: This machine, see :func:`bench.latency.provenance.device_description`.
        versions: Library versions.
    """

    entries: tuple[Entry, ...]
    annotations: Path
    images: int
    threads: int
    protocol: Protocol
    device: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        content = asdict(self)
        content["annotations"] = str(self.annotations)
        for entry, fields in zip(self.entries, content["entries"], strict=True):
            fields["artifact"] = str(entry.artifact)
            fields["latency"]["reliable"] = entry.latency.reliable
        return content


def compare(
    artifacts: Artifacts,
    split: CocoSplit,
    *,
    threads: int = 1,
    protocol: Protocol = DETECTOR_PROTOCOL,
    seed: int = 0,
    progress: Progress = silent,
) -> BenchResult:
    """Measure mAP and latency of artifacts in one run, the latencies in interleaved rounds.

    Args:
        artifacts: Runtime and file of each, by the name it gets in the report.
        split: Images and boxes to evaluate on.
        threads: CPU threads of one inference.
        protocol: How much to time.
        seed: Seed of the order of the rounds.
        progress: Called with (done, total) of images and rounds together.

    Raises:
        AdaptError: If there is no artifact, or one cannot run or has other classes than the split.
    """
    if not artifacts:
        raise AdaptError("there is nothing to compare; pass at least one artifact")
    steps = _Steps(len(artifacts) * (len(split) + protocol.rounds), progress)
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(runtime, path, threads))
            for name, (runtime, path) in artifacts.items()
        }
        metrics = {}
        for name, runner in runners.items():
            metrics[name], _ = evaluate_runner(runner, split, progress=steps)
        latencies = _latencies(runners, split, protocol, threads, seed, steps)
        entries = tuple(
            _entry(name, artifacts[name][1], runner, metrics[name], latencies[name])
            for name, runner in runners.items()
        )
    return BenchResult(
        entries=entries,
        annotations=split.annotations,
        images=len(split),
        threads=threads,
        protocol=protocol,
        device=device_description(),
        versions=library_versions(),
    )


class _Steps:
    """Makes one progress of several: each call is one step, whoever calls."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        self._done += 1
        self._progress(self._done, self._total, note)


def evaluate_runner(
    runner: Runner, split: CocoSplit, *, progress: Progress = silent
) -> tuple[Metrics, list[Detections]]:
    """Run a detector over a split, one image at a time, and evaluate what it finds.

    Args:
        runner: An open runner.
        split: Images and boxes.
        progress: Called with (done, total) after every image.

    Returns:
        The metrics, and the detections in pixels of the original images.

    Raises:
        AdaptError: If the detector's classes are not those of the split.
    """
    _check_classes(runner.info, split)
    size = runner.size
    found = []
    for done, image in enumerate(split.images, start=1):
        found.append(_detect(runner, image, size))
        progress(done, len(split))
    return evaluate(split, found), found


def _check_classes(info: DetectorInfo, split: CocoSplit) -> None:
    if info.classes != split.class_names:
        raise AdaptError(
            f"the detector knows the classes {_list(info.classes)}, {split.annotations} has "
            f"{_list(split.class_names)}; evaluate on the data set it was trained for"
        )


def _list(names: tuple[str, ...], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" ... ({len(names)})" if len(names) > most else "")


def _detect(runner: Runner, image: CocoImage, size: InputSize) -> Detections:
    pixels, factors = fit(read_image(image), size)
    ((boxes, scores, labels),) = runner.infer(batch_of_one(pixels))
    original = detections_to_original(from_numpy(boxes), factors, image.width, image.height)
    return Detections(image.id, original, scores, labels)


def _latencies(
    runners: Mapping[str, Runner],
    split: CocoSplit,
    protocol: Protocol,
    threads: int,
    seed: int,
    progress: Progress,
) -> dict[str, Latency]:
    """Time every runner on the first image of the split."""
    image = read_image(split.images[0])
    timers: dict[str, Timer] = {
        name: wall_timer(runner.bind(batch_of_one(fit(image, runner.size)[0])))
        for name, runner in runners.items()
    }
    target = OrtBackend("ort-cpu", threads=threads)
    anchor = Anchor(target.load(target.build(ANCHOR)))
    return measure(timers, protocol, anchor=anchor, seed=seed, progress=progress)


def _entry(name: str, artifact: Path, runner: Runner, metrics: Metrics, latency: Latency) -> Entry:
    info, size = runner.info, runner.info.input.fixed()
    units = detector_units(info.architecture, info.detector, size)
    return Entry(
        name=name,
        artifact=artifact,
        runner=runner.describe(),
        precision=runner.precision,
        architecture=info.architecture.hash,
        height=size.height,
        width=size.width,
        metrics=metrics,
        latency=latency,
        madds=sum(map(madds, units)),
        params=count_parameters(info.build()),
        size_mb=artifact.stat().st_size / 1e6,
    )


def named(artifacts: Sequence[Path], runtimes: Sequence[str] = ()) -> dict[str, tuple[str, Path]]:
    """Return the artifacts to compare, each on every asked runtime that runs such files.

    Args:
        artifacts: Detector files.
        runtimes: Runtimes; each file's usual one if empty.

    Raises:
        AdaptError: If no asked runtime runs one of the files.
    """
    unknown = [name for name in runtimes if name not in ARTIFACTS]
    if unknown:
        raise AdaptError(f"runtime must be one of {', '.join(ARTIFACTS)}, got {unknown[0]!r}")
    chosen: dict[str, tuple[str, Path]] = {}
    for artifact in artifacts:
        asked = runtimes or (usual_runtime(artifact),)
        fitting = [name for name in asked if ARTIFACTS[name] == artifact.suffix]
        if not fitting:
            check_artifact(asked[0], artifact)
        for runtime in fitting:
            label = f" on {runtime}" if len(fitting) > 1 else ""
            name = f"{artifact.stem}{label}"
            chosen[f"{artifact}{label}" if name in chosen else name] = (runtime, artifact)
    return chosen


def evaluate_artifact(
    artifact: Path,
    split: CocoSplit,
    runtime: str | None = None,
    threads: int = 1,
    *,
    results: Path | None = None,
    progress: Progress = silent,
) -> Metrics:
    """Evaluate a detector file on a runtime.

    Args:
        artifact: Detector or ONNX file.
        split: Images and boxes.
        runtime: Runtime; the file's usual one if None.
        threads: CPU threads of one inference.
        results: Where to write the detections as COCO results JSON, if anywhere.
        progress: Called with (done, total) after every image.
    """
    if results:
        make_folder(results.parent)  # before the images, not after
    with open_runner(runtime or usual_runtime(artifact), artifact, threads) as runner:
        metrics, found = evaluate_runner(runner, split, progress=progress)
    if results:
        write_text(results, json.dumps(coco_results(found, split)) + "\n")
    return metrics
