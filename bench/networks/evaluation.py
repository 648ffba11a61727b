"""Which AP does a detector file reach on a runtime? (`adapt eval`)"""

import json
from pathlib import Path

from adapt.artifacts import make_folder, write_text
from adapt.data.annotated_image import read_image
from adapt.data.coco import CocoSplit
from adapt.data.evaluate import Detections, Metrics, coco_results, evaluate
from adapt.progress import Progress, silent
from bench.peers.runner import PeerRunner, open_detector
from export.run.inference import Runner
from export.run.runner import usual_runtime


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
        artifact: Detector, ONNX file or engine.
        split: Images and boxes.
        runtime: Runtime; the file's usual one if None.
        threads: CPU threads of one inference.
        results: Where to write the detections as COCO results JSON, if anywhere.
        progress: Called with (done, total) after every image.
    """
    if results:
        make_folder(results.parent)  # before the images, not after
    with open_detector(runtime or usual_runtime(artifact), artifact, threads) as runner:
        metrics, detections = evaluate_runner(runner, split, progress=progress)
        if results:
            content = coco_results(detections, matched(split, runner))
            write_text(results, json.dumps(content) + "\n")
    return metrics


def evaluate_runner(
    runner: Runner, split: CocoSplit, *, progress: Progress = silent
) -> tuple[Metrics, list[Detections]]:
    """Run a detector over a split, batch by batch, and evaluate its detections.

    Args:
        runner: An open runner.
        split: Images and boxes.
        progress: Called with (done, total) after every image.

    Returns:
        The metrics, and the detections in pixels of the original images.

    Raises:
        AdaptError: If the split has boxes of classes that the detector does not know.
    """
    split = matched(split, runner)
    detections: list[Detections] = []
    for start in range(0, len(split), runner.batch):
        batch = split.images[start : start + runner.batch]
        found = runner.detect([read_image(image) for image in batch])
        for image, of_image in zip(batch, found, strict=True):
            detections.append(Detections(image.id, *of_image))
            progress(len(detections), len(split))
    return evaluate(split, detections, runner.most_detections), detections


def matched(split: CocoSplit, runner: Runner) -> CocoSplit:
    """Return a split with the labels of a detector's classes, by name.

    Raises:
        AdaptError: If the split has boxes of classes that the detector does not know.
    """
    if isinstance(runner, PeerRunner):
        return runner.matched(split)
    return split.matched(runner.classes, "the detector")
