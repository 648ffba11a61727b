"""What did each detector find in the images that it was measured on?"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

from adapt.artifacts import read_json
from adapt.data.bootstrap import bootstrapped
from adapt.data.coco import CocoSplit, load_place
from adapt.data.evaluate import Detections, coco_evaluation
from adapt.errors import AdaptError
from adapt.progress import Progress, part_of, silent
from bench.networks.measure import BenchResult, Entry
from bench.report.folder import Folder
from bench.report.matches import Floats, Matches, matches

SAMPLES = 200  # of images, for intervals of AP
FEW_IMAGES = 20  # of which drawing some says nothing
MANY_DETECTIONS = 50_000  # of all detectors: intervals take minutes then
INTERVAL = (0.025, 0.975)
SAME = 0.005  # percent of AP

Interval = tuple[float, float]


@dataclass(frozen=True)
class Found:
    """Detections of a benchmark beside the objects of its images.

    Attributes:
        split: The images and objects; None if nothing can be told.
        matches: What each detector got right and wrong, by its name.
        precision: Precision of each detector, ``float64[10, 101, K]`` by IoU, recall and class with
            objects.
        why_not: Why nothing can be told, in one sentence.
        ap: 95 % interval of each detector's AP over images drawn with replacement, in percent;
            empty for few images or very many detections.
        gain: The same of its AP less the source's, on the same images.
    """

    split: CocoSplit | None = None
    matches: Mapping[str, Matches] = field(default_factory=dict)
    precision: Mapping[str, Floats] = field(default_factory=dict)
    why_not: str = ""
    ap: Mapping[str, Interval] = field(default_factory=dict)
    gain: Mapping[str, Interval] = field(default_factory=dict)


def read_found(folder: Folder, progress: Progress = silent) -> Found:
    """Read and evaluate the stored detections; what is gone is said, not refused.

    Args:
        folder: The report.
        progress: Told after every detector, and while intervals are computed.

    Raises:
        AdaptError: If a file of detections is damaged, or of another benchmark.
    """
    result = folder.result
    if why_not := _gone(folder):
        return Found(why_not=why_not)
    try:
        split = _split(result)
    except AdaptError as error:
        return Found(why_not=f"The images cannot be read: {error}.")
    if result.annotations_sha256 != split.sha256:
        return Found(why_not=f"{result.annotations} has changed since the benchmark.")
    held, precision, evaluations = dict[str, Matches](), dict[str, Floats](), list[COCOeval]()
    parts, detections = len(folder.detectors) + 1, 0
    for number, entry in enumerate(folder.detectors):
        evaluation = _evaluation(folder, entry, split)
        held[entry.name], precision[entry.name] = matches(evaluation), _precision(evaluation)
        detections += len(evaluation.cocoDt.anns)
        # Of 5,000 images and 80 classes it takes gigabytes: it is kept for intervals alone.
        evaluations = [*evaluations, evaluation] if detections <= MANY_DETECTIONS else []
        del evaluation  # not while the next one is made
        part_of(progress, number, parts)(1, 1, entry.name)
    ap, gain = _intervals(folder, evaluations, part_of(progress, parts - 1, parts))
    return Found(split, held, precision, ap=ap, gain=gain)


def _gone(folder: Folder) -> str:
    """Say which detections are not there; empty if all are."""
    if folder.result.place is None or any(not entry.detections for entry in folder.detectors):
        return "The detections were not stored: this report was written by an older adapt."
    files = [folder.report / entry.detections for entry in folder.detectors]
    missing = [str(file) for file in files if not file.is_file()]
    return f"The detections are gone: {', '.join(missing)}." if missing else ""


def _split(result: BenchResult) -> CocoSplit:
    # What cannot be repaired was refused before it was measured, and repair changes no sound split.
    assert result.place is not None
    return load_place(result.place, repair=True).limit(result.images)


def _evaluation(folder: Folder, entry: Entry, split: CocoSplit) -> COCOeval:
    """Evaluate stored detections, and compare AP with the report's."""
    path = folder.report / entry.detections
    detections = read_detections(path, split)
    most = entry.metrics.max_detections
    evaluation = coco_evaluation(split, detections, most, any_size=True)
    reached, told = 100 * float(_precision(evaluation).mean()), 100 * entry.metrics.ap
    if abs(reached - told) > SAME:
        raise AdaptError(
            f"detections {path} reach {reached:.2f} AP, and the report {told:.2f}: they are of "
            "another benchmark; measure again with `adapt bench`"
        )
    return evaluation


def _precision(evaluation: COCOeval) -> Floats:
    by_class: Floats = evaluation.eval["precision"][:, :, :, 0, -1]
    known = (by_class > -1).all(axis=(0, 1))  # pycocotools writes -1 of classes without objects
    return by_class[:, :, known]


def read_detections(path: Path, split: CocoSplit) -> list[Detections]:
    """Read detections in COCO's results format.

    Args:
        path: JSON file.
        split: The images.

    Raises:
        AdaptError: If it is damaged, or names images or classes that the split does not have.
    """
    images = {image.annotated_id: image.id for image in split.images}
    labels = {number: label for label, number in enumerate(split.category_ids)}
    rows = defaultdict[int, list[tuple[list[float], float, int]]](list)
    try:
        for one in read_json(path, "detections"):
            box, label = one["bbox"], labels[one["category_id"]]
            corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
            rows[images[one["image_id"]]].append((corners, one["score"], label))
        return [_detections(image, of_image) for image, of_image in rows.items()]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, AdaptError):
            raise
        raise AdaptError(
            f"detections {path} are damaged, or not of {split.annotations} "
            f"({type(error).__name__}: {error}); measure again with `adapt bench`"
        ) from error


def _detections(image: int, rows: list[tuple[list[float], float, int]]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(image, np.array(boxes, np.float64), np.array(scores), np.array(labels))


def _intervals(
    folder: Folder, evaluations: Sequence[COCOeval], progress: Progress
) -> tuple[dict[str, Interval], dict[str, Interval]]:
    """Return intervals of AP and of its gain over the source, in percent."""
    if folder.result.images < FEW_IMAGES or not evaluations:
        return {}, {}
    drawn = 100 * bootstrapped(evaluations, SAMPLES, progress=progress)
    names = folder.names
    ap = {name: _interval(drawn[:, place]) for place, name in enumerate(names)}
    if not folder.source:
        return ap, {}
    known = drawn[:, names.index(folder.source.name)]
    others = [name for name in names if name != folder.source.name]
    return ap, {name: _interval(drawn[:, names.index(name)] - known) for name in others}


def _interval(values: Any) -> Interval:
    low, high = np.quantile(values, INTERVAL)
    return float(low), float(high)
