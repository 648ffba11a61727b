"""Which AP and latency do detector files reach, side by side? (`adapt bench`)"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.artifacts import content_hash, library_versions
from adapt.cost.units import detector_units, madds
from adapt.data.annotated_image import read_image
from adapt.data.coco import CocoSplit
from adapt.data.evaluate import Metrics
from adapt.data.formats.place import Place
from adapt.data.images import fit
from adapt.detector.retinanet import count_parameters
from adapt.errors import AdaptError
from adapt.machine import usable_cores
from adapt.progress import Progress, silent
from bench.latency.backend import open_backend
from bench.latency.provenance import device_description
from bench.latency.subject import ANCHOR
from bench.latency.timing import (
    Anchor,
    Latency,
    Protocol,
    Timer,
    measure,
    paced_timer,
    wall_timer,
)
from bench.networks.artifacts import Artifacts, Row, rows_of
from bench.networks.evaluation import evaluate_artifact
from bench.networks.footprint import Footprint, footprint
from bench.networks.stages import stage_times
from bench.peers.runner import PeerRunner, is_peer, open_detector
from export.run.inference import Array, Runner, batch_of_one

DETECTOR_PROTOCOL = Protocol(rounds=10, round_ms=500.0, settle_calls=50)
PACED_CALLS = 20  # of a round, at least
ALONE = ", network alone"  # of another tool's file, without what makes its outputs detections
DETECTIONS = "detections"  # folder of a report with what every artifact found


@dataclass(frozen=True)
class Timing:
    """How artifacts are timed.

    Attributes:
        threads: CPU threads of one inference.
        batch: Images of one call, for artifacts that take any number.
        protocol: How much to time.
        footprints: Whether load time and memory are measured too, in processes of their own, and
            the time of each stage, where the runtime tells it.
    """

    threads: int = 1
    batch: int = 1
    protocol: Protocol = DETECTOR_PROTOCOL
    footprints: bool = False

    def paced(self, every_ms: float) -> "Timing":
        """Return the same with calls at a fixed rate; with 0, back to back."""
        long_enough = max(self.protocol.round_ms, PACED_CALLS * every_ms)
        protocol = replace(self.protocol, every_ms=every_ms, round_ms=long_enough)
        return replace(self, protocol=protocol)


@dataclass(frozen=True)
class Entry:
    """What was measured of one artifact on one runtime.

    Attributes:
        name: Name in the report.
        artifact: The file; of two that run as one, each has an entry with the metrics of both.
        runner: Runtime, version, device and threads, as the runner describes itself.
        precision: ``fp32``, ``fp16`` or ``int8``.
        architecture: Hash of the backbone's architecture; empty for a file of another tool.
        height: Height of the input in pixels.
        width: Width of the input in pixels.
        batch: Images of one timed call.
        metrics: COCO metrics of the detections this runtime made.
        latency: Latency of such a call on this runtime, pre-processing not included.
        madds: Multiply-adds of the whole detector, as Table II counts them; None for a file of
            another tool.
        params: Parameters of the whole detector; of another tool's file, as its graph has them.
        size_mb: Size of the file in 10^6 bytes.
        detections: What it found, as COCO results JSON in the report's folder; empty if not stored.
        footprint: Its load time and memory, if they were measured.
        network_ms: Median of another tool's network alone; ``latency`` also has what makes its
            outputs detections.
        stages_ms: Milliseconds of the parts of a detector, see
            :func:`bench.networks.stages.stage_times`; None where the runtime does not tell.
    """

    name: str
    artifact: Path
    runner: dict[str, Any]
    precision: str
    architecture: str
    height: int
    width: int
    batch: int
    metrics: Metrics
    latency: Latency
    madds: float | None
    params: int
    size_mb: float
    detections: str = ""
    footprint: Footprint | None = None
    network_ms: float | None = None
    stages_ms: dict[str, float] | None = None

    @property
    def images_per_s(self) -> float | None:
        """Images per second while calls follow back to back; None if they did not."""
        return None if self.latency.every_ms else 1000 * self.batch / self.latency.mean_ms

    @property
    def is_peer(self) -> bool:
        """Whether another tool wrote the file."""
        return "peer" in self.runner


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
        place: Where the evaluated split lies; None in reports of before it was told.
        annotations_sha256: Hash of its annotations; empty in these reports.
    """

    entries: tuple[Entry, ...]
    annotations: Path
    images: int
    threads: int
    protocol: Protocol
    device: dict[str, Any]
    versions: dict[str, str]
    place: Place | None = None
    annotations_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        content = asdict(self)
        content["annotations"] = str(self.annotations)
        for entry, fields in zip(self.entries, content["entries"], strict=True):
            fields["artifact"] = str(entry.artifact)
            fields["latency"]["reliable"] = entry.latency.reliable
            fields["latency"]["doubts"] = entry.latency.doubts
            fields["images_per_s"] = entry.images_per_s
        if content["place"]:
            place = content["place"].items()
            content["place"] = {name: value and str(value) for name, value in place}
        return content


def compare(
    artifacts: Artifacts,
    split: CocoSplit,
    timing: Timing | None = None,
    *,
    report: Path | None = None,
    progress: Progress = silent,
) -> BenchResult:
    """Measure mAP and latency of artifacts, all latencies of a device in interleaved rounds.

    Args:
        artifacts: Runtime and file of each, by the name it gets in the report.
        split: Images and boxes to evaluate on.
        timing: How to time; evaluation takes all cores and the batch that a file was exported for.
        report: Folder of the report, for what each of them found; it is not stored if None.
        progress: Called with (done, total) of images and rounds together.

    Raises:
        AdaptError: If there is no artifact, one cannot run, or does not know a class of the split.
    """
    if not artifacts:
        raise AdaptError("there is nothing to compare; pass at least one artifact")
    timing = timing or Timing()
    device = device_description()
    rows = rows_of(artifacts)
    timed_calls = len(rows) + sum(is_peer(row.file) for row in rows)  # theirs without NMS too
    steps = _Steps(len(artifacts) * len(split) + timed_calls * timing.protocol.rounds, progress)
    stored = {name: f"{DETECTIONS}/{_file_name(name)}" if report else "" for name in artifacts}
    metrics = {
        name: evaluate_artifact(
            path,
            split,
            runtime,
            usable_cores(),
            results=report / stored[name] if report else None,
            progress=steps,
        )
        for name, (runtime, path) in artifacts.items()
    }
    with _opened(artifacts, rows, timing) as timed:
        images = {row.label: _timed_images(timed[row.label], row, split, timing) for row in rows}
        latencies = _latencies(timed, images, timing, steps)
        entries = tuple(
            _entry(
                row,
                timed[row.label],
                images[row.label],
                metrics[row.name],
                latencies,
                stored[row.name],
            )
            for row in rows
        )
    if timing.footprints:
        entries = tuple(_loaded_apart(entry, images[entry.name], timing) for entry in entries)
    return BenchResult(
        entries=entries,
        annotations=split.annotations,
        images=len(split),
        threads=timing.threads,
        protocol=timing.protocol,
        device=device,
        versions=library_versions(),
        place=split.place.absolute(),
        annotations_sha256=split.sha256,
    )


def _file_name(name: str) -> str:
    """Return a file for what an artifact found; names may be paths."""
    plain = re.sub(r"[^\w.+-]", "-", name)[-100:]
    return f"{plain}.json" if plain == name else f"{plain}-{content_hash(name)[:6]}.json"


def time_artifacts(
    artifacts: Artifacts, split: CocoSplit, timing: Timing, *, progress: Progress = silent
) -> dict[str, Latency]:
    """Return the latencies of artifacts, those of a device in interleaved rounds.

    Args:
        artifacts: Runtime and file of each, by its name.
        split: Images, the first of which is detected in.
        timing: How to time.
        progress: Told after every sample.

    Raises:
        AdaptError: If one cannot run here.
    """
    rows = rows_of(artifacts)
    with _opened(artifacts, rows, timing) as timed:
        images = {row.label: _timed_images(timed[row.label], row, split, timing) for row in rows}
        return _latencies(timed, images, timing, progress)


@contextmanager
def _opened(
    artifacts: Artifacts, rows: Sequence[Row], timing: Timing
) -> Iterator[dict[str, Runner]]:
    """Open the artifacts; yield what runs each row."""
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_detector(runtime, path, timing.threads))
            for name, (runtime, path) in artifacts.items()
        }
        yield {row.label: runners[row.name] for row in rows}


class _Steps:
    """Reports several kinds of work as one: every call is one step of the total."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def __call__(self, done: int, total: int, note: str = "", /) -> None:
        self._done += 1
        self._progress(self._done, self._total, note)


def _timed_images(runner: Runner, row: Row, split: CocoSplit, timing: Timing) -> Array:
    """Return the images of one timed call: copies of one, as many as the artifact takes.

    It is the split's first image that the timed file is for, and for a detector that takes any size
    the first landscape one, since a cost table measures detectors at that shape.
    """
    batch = timing.batch if runner.dynamic else runner.batch
    if isinstance(runner, PeerRunner):
        return np.repeat(runner.placed(read_image(split.images[0])), batch, axis=0)
    fitting, canvas = runner.fitting, None
    images = [image for image in split.images if image.width >= image.height]
    if fitting.canvases:
        canvas = fitting.canvases[row.part]
        images = [x for x in split.images if fitting.canvas(x.height, x.width) == canvas]
    pixels, _ = fit(read_image((images or split.images)[0]), fitting.resize, canvas)
    return np.repeat(batch_of_one(pixels), batch, axis=0)


def _latencies(
    runners: Mapping[str, Runner],
    images: Mapping[str, Array],
    timing: Timing,
    progress: Progress,
) -> dict[str, Latency]:
    """Time runners on images that are in the runtime's memory already.

    Networks of other tools are timed twice, with and without NMS outside of their graphs. Those of
    one device are timed in rounds of their own, beside an anchor on that device: whether a
    processor is slow says nothing about a GPU.
    """
    latencies: dict[str, Latency] = {}
    on_cpu = {name: runner.describe()["device"] == "cpu" for name, runner in runners.items()}
    for cpu in dict.fromkeys(on_cpu.values()):
        timed = [name for name, on in on_cpu.items() if on is cpu]
        timers = {name: _timer(runners[name].bind(images[name]), timing) for name in timed}
        for name in timed:
            runner = runners[name]
            if isinstance(runner, PeerRunner):
                timers[name + ALONE] = _timer(runner.bind_network(images[name]), timing)
        runtime = "ort-cpu" if cpu else runners[timed[0]].describe()["runtime"]
        backend = open_backend(runtime, threads=timing.threads)
        latencies |= measure(
            timers,
            timing.protocol,
            anchor=Anchor(backend.load(backend.build(ANCHOR))),
            state=backend.state,
            progress=progress,
        )
    return latencies


def _timer(call: Callable[[], None], timing: Timing) -> Timer:
    every_ms = timing.protocol.every_ms
    return paced_timer(wall_timer(call), every_ms) if every_ms else wall_timer(call)


def _loaded_apart(entry: Entry, images: Array, timing: Timing) -> Entry:
    """Return an entry with what is measured of its file by itself."""
    runtime, file, threads = entry.runner["runtime"], entry.artifact, timing.threads
    ours = runtime == "ort-cpu" and not entry.is_peer
    return replace(
        entry,
        footprint=footprint(runtime, file, threads, images),
        stages_ms=stage_times(file, threads, images) if ours else None,
    )


def _entry(
    row: Row,
    runner: Runner,
    images: Array,
    metrics: Metrics,
    latencies: Mapping[str, Latency],
    detections: str,
) -> Entry:
    network = latencies.get(row.label + ALONE)
    return Entry(
        name=row.label,
        artifact=row.file,
        runner=runner.describe(),
        precision=runner.precision,
        height=images.shape[2],
        width=images.shape[3],
        batch=len(images),
        metrics=metrics,
        latency=latencies[row.label],
        size_mb=row.file.stat().st_size / 1e6,
        detections=detections,
        network_ms=None if network is None else network.p50_ms,
        **_structure(row, runner),
    )


def _structure(row: Row, runner: Runner) -> dict[str, Any]:
    """Return what is known of a network without running it."""
    if isinstance(runner, PeerRunner):
        return {"architecture": "", "madds": None, "params": runner.file.parameters}
    info = runner.info
    size = (runner.fitting.canvases or info.input.canvases())[row.part]
    return {
        "architecture": info.architecture.hash,
        "madds": sum(map(madds, detector_units(info.architecture, info.detector, size))),
        "params": count_parameters(info.build()),
    }
