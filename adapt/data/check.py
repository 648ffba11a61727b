"""What is wrong with a data set? (found before hours of training on it)"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from adapt.data.alike import Hashes, near
from adapt.data.coco import CocoSplit, ImageBoxes, read_split
from adapt.data.image_check import (
    ImageFinding,
    inspect_image,
    orientation_warnings,
    turned_problems,
)
from adapt.data.layout import check_folder, find_split, has_split, split_names
from adapt.data.paths import real_path
from adapt.data.repair import Problem, Remedy
from adapt.errors import AdaptError
from adapt.progress import Progress, Stage, silent, silent_stage

SMALL, LARGE = 32.0**2, 96.0**2  # COCO's limits of the areas of medium objects, square pixels
DETECTIONS = 100  # that a detector returns per image, unless its recipe asks for more
FIXES: dict[Remedy, str] = {
    "clipped": "correct them, or data.repair = true cuts them at the border of their image",
    "left out": "correct them, or data.repair = true leaves them out",
}
ALIKE = 2  # bits of 64 by which the hashes of copies differ at most
EXAMPLES = 3  # problems of one kind that are told in full


Looks = Mapping[Path, Hashes]  # by image file


@dataclass(frozen=True)
class ProblemKind:
    """All problems of one kind.

    Attributes:
        kind: What they are: ``boxes of no size``.
        count: How many there are.
        repair: What ``data.repair = true`` does with each: ``clipped``, ``left out``, or
            ``refused``: nothing, they must be corrected.
        fix: What to do.
        examples: The first of them.
    """

    kind: str
    count: int
    repair: Remedy
    fix: str
    examples: tuple[str, ...]

    def __str__(self) -> str:
        others = self.count - len(self.examples)
        more = [f"... and {others} more"] if others else []
        return "\n  ".join((f"{self.count} {self.kind}; {self.fix}", *self.examples, *more))


@dataclass(frozen=True)
class DataReport:
    """What a split holds, and what is wrong with it.

    Attributes:
        problems: What stops a training or an evaluation, by kind.
        warnings: What stops nothing but may be a mistake; one sentence each.
    """

    annotations: str = ""
    images: int = 0
    empty_images: int = 0
    grayscale_images: int = 0
    rotated_images: int = 0
    unreadable_images: int = 0
    mismatched_images: int = 0
    boxes: int = 0
    crowd_boxes: int = 0
    duplicate_boxes: int = 0
    clipped_boxes: int = 0
    dropped_boxes: int = 0
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    boxes_per_size: dict[str, int] = field(default_factory=dict)
    problems: tuple[ProblemKind, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        problems = [asdict(kind) | {"examples": list(kind.examples)} for kind in self.problems]
        return {**asdict(self), "problems": problems, "warnings": list(self.warnings)}

    def shown(self) -> dict[str, Any]:
        """Return what people read: problems as lines of text, no numbers where nothing was read."""
        content = asdict(self) if self.annotations else {}
        lines = [str(kind) for kind in self.problems]
        told = {"problems": lines, "warnings": list(self.warnings)}
        return {**content, **{name: found or "none" for name, found in told.items()}}


Pair = tuple[Path, Path]  # an image, and a training image that looks like it


@dataclass(frozen=True)
class Checked:
    """What was found in a data set.

    Attributes:
        reports: Of every split, by its name; also of those that are missing or cannot be read.
        splits: The splits that could be read, with the images that can be opened.
        pairs: By split, images that look like training images.
    """

    reports: Mapping[str, DataReport]
    splits: Mapping[str, CocoSplit]
    pairs: Mapping[str, Sequence[Pair]]

    @property
    def problems(self) -> int:
        """How many problems there are in all splits."""
        return sum(kind.count for report in self.reports.values() for kind in report.problems)

    @property
    def verdict(self) -> str:
        """What it comes to, in one line."""
        warnings = sum(len(report.warnings) for report in self.reports.values())
        match self.problems:
            case 0:
                stops = "Nothing stops"
            case 1:
                stops = "1 problem stops"
            case several:
                stops = f"{several} problems stop"
        noted = f" {warnings} warning{'s' if warnings > 1 else ''}." if warnings else ""
        return f"{stops} a training or an evaluation.{noted}"

    @property
    def boxed(self) -> CocoSplit | None:
        """The training split, or the first one with boxes; None if no split has any."""
        with_boxes = {name: split for name, split in self.splits.items() if split.has_boxes}
        return with_boxes.get("train") or next(iter(with_boxes.values()), None)


def check_data(root: Path, splits: Sequence[str] = (), *, stage: Stage = silent_stage) -> Checked:
    """Check splits of a data set, by name, and whether they fit each other.

    Args:
        root: Folder of the data set.
        splits: Their names; ``train``, ``val``, and ``test`` where there is one if empty.
        stage: Opens the progress display of a split.

    Raises:
        AdaptError: If there is no such folder, no split in it, or a single one that cannot be read.
    """
    check_folder(root)
    reports, read, looks = {}, dict[str, CocoSplit](), dict[str, Looks]()
    opened = dict[str, CocoSplit]()
    names = splits or ("train", "val", *(["test"] if has_split(root, "test") else []))
    for name in names:
        try:
            read[name] = split = read_split(find_split(root, name))
        except AdaptError as error:
            if len(names) == 1 or not split_names(root):
                raise
            message, _, fix = str(error).rpartition("; ")
            problem = Problem("splits that cannot be read", message, fix, "refused")
            reports[name] = DataReport(problems=_by_kind([problem]))
            continue
        with stage(f"check {name}") as progress:
            findings = inspected(split, progress)
        reports[name] = check_split(split, findings, teaches=name.startswith("train"))
        if sound := [finding.image.id for finding in findings if not finding.problem]:
            opened[name] = split.subset(sound)
        # Of plain images, such as of one colour, every hash is the same.
        looks[name] = {f.path: f.look for f in findings if f.look is not None and f.look.any()}
    pairs = {name: _pairs(name, read, looks) for name in read}
    compared = {
        name: _compared(report, name, read, pairs.get(name, ())) for name, report in reports.items()
    }
    return Checked(compared, opened, pairs)


def inspected(split: CocoSplit, progress: Progress = silent) -> list[ImageFinding]:
    """Open every image of a split."""
    findings = []
    for done, image in enumerate(split.images, start=1):
        findings.append(inspect_image(image))
        progress(done, len(split))
    return findings


def check_split(
    split: CocoSplit, findings: Sequence[ImageFinding] | None = None, *, teaches: bool = False
) -> DataReport:
    """Report all that is wrong with a split.

    Args:
        split: The split, as :func:`read_split` reads it.
        findings: What its images are; they are opened if None.
        teaches: Whether detectors are trained on it, and not evaluated.
    """
    findings = inspected(split) if findings is None else findings
    image_kinds = Counter(kind for finding in findings for kind in finding.kinds)
    repaired = Counter(problem.remedy for problem in split.problems)
    per_class = _boxes_per_class(split)
    duplicates = sum(map(_count_duplicates, split.boxes))
    boxes = sum(map(len, split.boxes))
    problems = [
        *turned_problems(split.problems, findings),  # causes before what they cause
        *split.problems,
        *(finding.problem for finding in findings if finding.problem),
        *([] if split.has_boxes else [_no_boxes(split)]),
    ]
    return DataReport(
        annotations=str(split.annotations),
        images=len(split),
        empty_images=sum(not len(image_boxes) for image_boxes in split.boxes),
        grayscale_images=image_kinds["grayscale"],
        rotated_images=image_kinds["rotated"],
        unreadable_images=image_kinds["unreadable"],
        mismatched_images=image_kinds["mismatched"],
        boxes=boxes,
        crowd_boxes=boxes - sum(per_class.values()),
        duplicate_boxes=duplicates,
        clipped_boxes=repaired["clipped"],
        dropped_boxes=repaired["left out"],
        boxes_per_class=per_class,
        boxes_per_size=_boxes_per_size(split),
        problems=_by_kind(problems),
        warnings=(
            *orientation_warnings(findings),
            *_image_warnings(split),
            *_box_warnings(split, per_class, duplicates, teaches=teaches),
        ),
    )


def _by_kind(problems: Iterable[Problem]) -> tuple[ProblemKind, ...]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return tuple(
        ProblemKind(
            kind,
            len(found),
            found[0].remedy,
            FIXES.get(found[0].remedy, found[0].fix),
            tuple(problem.message for problem in found[:EXAMPLES]),
        )
        for kind, found in kinds.items()
    )


def _no_boxes(split: CocoSplit) -> Problem:
    message = f"{split.annotations} holds no boxes of single objects"
    return Problem("splits without boxes", message, "annotate some", "refused")


def _pairs(name: str, read: Mapping[str, CocoSplit], looks: Mapping[str, Looks]) -> list[Pair]:
    """Return the images of a split that look like other ones of the training split."""
    train = read.get("train")
    if train is None or name == "train":
        return []
    trained = {real_path(image.path) for image in train.images}
    found = _alike(looks[name], looks["train"])
    return [pair for pair in found if real_path(pair[0]) not in trained]


def _compared(
    report: DataReport, name: str, read: Mapping[str, CocoSplit], pairs: Sequence[Pair]
) -> DataReport:
    """Add what does not fit the training split, and what is too like it."""
    split, train = read.get(name), read.get("train")
    if split is None or train is None or split is train:
        return report
    problems, warnings = report.problems, report.warnings
    try:
        split.matched(train.class_names, str(train.annotations))
    except AdaptError as error:
        message, _, fix = str(error).rpartition("; ")
        problem = Problem("splits with classes unknown to train", message, fix, "refused")
        problems = (*problems, *_by_kind([problem]))
    else:
        warnings = (*warnings, *filter(None, [split.untaught(train)]))
    trained = {real_path(image.path) for image in train.images}
    shared = [image.path for image in split.images if real_path(image.path) in trained]
    if shared:
        warnings = (
            *warnings,
            f"{len(shared)} images of {split.annotations} are training images too (the first: "
            f"{shared[0]}); AP on them says nothing of new images",
        )
    if pairs:
        warnings = (
            *warnings,
            f"{len(pairs)} images of {split.annotations} look like training images (the first: "
            f"{pairs[0][0]} like {pairs[0][1]}); if they are copies or frames of one film, AP on "
            "them is too good",
        )
    return replace(report, problems=problems, warnings=warnings)


def _alike(some: Looks, others: Looks) -> list[tuple[Path, Path]]:
    """Return the images that look like another one, and which."""
    if not some or not others:
        return []
    paths, trained = list(some), list(others)
    held, taught = (np.stack(list(looks.values())) for looks in (some, others))
    found = near(held, taught, ALIKE)
    return [(paths[number], trained[places[0]]) for number, places in found if len(places)]


def _boxes_per_class(split: CocoSplit) -> dict[str, int]:
    labels = [boxes.labels[~boxes.crowd] for boxes in split.boxes]
    counts = np.bincount(_joined(labels, np.int64), minlength=len(split.class_names))
    return dict(zip(split.class_names, map(int, counts), strict=True))


def _boxes_per_size(split: CocoSplit) -> dict[str, int]:
    areas = _joined([boxes.areas[~boxes.crowd] for boxes in split.boxes], np.float64)
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    return {"small": small, "medium": len(areas) - small - large, "large": large}


def _joined(arrays: Sequence[Any], kind: type) -> Any:
    return np.concatenate([np.empty(0, dtype=kind), *arrays])


def _count_duplicates(boxes: ImageBoxes) -> int:
    rows = np.column_stack((boxes.labels, boxes.crowd, boxes.xyxy))
    return len(rows) - len(np.unique(rows, axis=0))


def _image_warnings(split: CocoSplit) -> list[str]:
    warnings = []
    paths = Counter(image.path for image in split.images)
    twice = [path for path, count in paths.items() if count > 1]
    if twice:
        warnings.append(
            f"{split.annotations} lists {len(twice)} image files more than once (the first: "
            f"{twice[0]}); the boxes of one entry are missing from the others"
        )
    return warnings + [text for text in (split.cornered(), split.crowded(DETECTIONS)) if text]


def _box_warnings(
    split: CocoSplit, per_class: dict[str, int], duplicates: int, *, teaches: bool
) -> list[str]:
    warnings = []
    if split.root_category:
        warnings.append(
            f"category {split.root_category!r} of {split.annotations} has no box and is the "
            "supercategory of all others; it is not counted as a class"
        )
    if duplicates:
        warnings.append(f"{split.annotations} repeats {duplicates} boxes; remove the copies")
    absent = [name for name, count in per_class.items() if not count]
    if absent:
        lacks = "nothing teaches them" if teaches else "no AP can be given for them"
        warnings.append(
            f"{split.annotations} has no box of {len(absent)} classes ({', '.join(absent[:5])}"
            f"{', ...' if len(absent) > 5 else ''}); {lacks}"
        )
    alike = Counter(name.casefold() for name in split.class_names)
    same = [name for name in split.class_names if alike[name.casefold()] > 1]
    if same:
        warnings.append(f"{', '.join(same[:5])} of {split.annotations} differ only in case")
    return warnings
