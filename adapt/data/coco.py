"""Which images and boxes does a data set hold, in COCO's terms?"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapt.data.annotated_image import CocoImage
from adapt.data.box_format import box_format_problem, corner_doubt
from adapt.data.entries import Annotation, Id, Reader, category_name, find_root_category
from adapt.data.formats.place import Place
from adapt.data.image_check import inspect_image, turned_problems
from adapt.data.layout import annotation_hash, find_split, read_place
from adapt.data.repair import Problem, refuse
from adapt.errors import AdaptError

LOOKED_AT = 20  # images whose boxes do not fit


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The N annotated boxes of one image.

    Attributes:
        xyxy: ``float64[N, 4]``, corners in pixels of the image.
        labels: ``int64[N]``, 0 to K - 1, places in the split's class names.
        crowd: ``bool[N]``, boxes around groups, which neither training nor evaluation counts.
        areas: ``float64[N]``, square pixels of the object: of its mask if the file says so, less
            than the box then.
    """

    xyxy: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """One split of a data set.

    Attributes:
        place: Where its annotations and images lie.
        images: The images in the order of the file.
        boxes: Their boxes, in the same order.
        class_names: Names in label order, which is the ascending order of the category ids.
        category_ids: The file's category id of every label; None if it has none (:meth:`matched`).
        problems: What is wrong with the file; what can be repaired is.
        root_category: Name of the category that only stands above the others and is no class.
    """

    place: Place
    images: tuple[CocoImage, ...]
    boxes: tuple[ImageBoxes, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[Id | None, ...]
    problems: tuple[Problem, ...] = ()
    root_category: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def annotations(self) -> Path:
        """The annotation file, or the folder of annotation files."""
        return self.place.annotations

    @property
    def folder(self) -> Path:
        """The folder the file names are relative to."""
        return self.place.images

    @property
    def sha256(self) -> str:
        """Hash of its annotations."""
        return annotation_hash(self.place)

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Image ids in order."""
        return tuple(image.id for image in self.images)

    @property
    def has_boxes(self) -> bool:
        """Whether there is a box of a single object."""
        return any((~boxes.crowd).any() for boxes in self.boxes)

    def subset(self, image_ids: Sequence[int]) -> "CocoSplit":
        """Return a split of these images only, in this order.

        Raises:
            AdaptError: If there are no ids, or one that the split does not hold.
        """
        positions = {image.id: position for position, image in enumerate(self.images)}
        unknown = [image_id for image_id in image_ids if image_id not in positions]
        if unknown or not image_ids:
            raise AdaptError(
                f"cannot take images {unknown} out of {self.annotations}; choose at least one of "
                f"its {len(self)} image ids"
            )
        chosen = [positions[image_id] for image_id in image_ids]
        kept = {None, *image_ids}
        return replace(
            self,
            images=tuple(self.images[position] for position in chosen),
            boxes=tuple(self.boxes[position] for position in chosen),
            problems=tuple(problem for problem in self.problems if problem.image_id in kept),
        )

    def limit(self, max_images: int | None) -> "CocoSplit":
        """Return at most ``max_images`` images, evenly spaced; ``None`` keeps all."""
        if max_images is None or max_images >= len(self):
            return self
        # Evenly spaced, not the first: files are often sorted by class or by camera.
        positions = np.linspace(0, len(self) - 1, max_images).round().astype(int)
        return self.subset([self.images[position].id for position in positions])

    def matched(self, class_names: Sequence[str], whose: str) -> "CocoSplit":
        """Return the split with the labels of other class names, matched by name.

        Splits of one data set may list their classes in another order, under other ids, or only
        those they have boxes of.

        Args:
            class_names: Names in the order of the wanted labels.
            whose: Who has these classes, for errors.

        Raises:
            AdaptError: If there are boxes of a class that is not among the names.
        """
        if tuple(class_names) == self.class_names:
            return self
        unknown = self.unknown_classes(class_names)
        if unknown:
            raise AdaptError(
                f"{self.annotations} has boxes of {_listed(unknown)}, {whose} has the classes "
                f"{_listed(class_names)}{_other_case(unknown, class_names)}; name them alike, "
                "remove these boxes, or pass another data set with --data"
            )
        places = {name: label for label, name in enumerate(class_names)}
        labels = np.array([places.get(name, -1) for name in self.class_names], dtype=np.int64)
        ids = dict(zip(self.class_names, self.category_ids, strict=True))
        return replace(
            self,
            boxes=tuple(replace(boxes, labels=labels[boxes.labels]) for boxes in self.boxes),
            class_names=tuple(class_names),
            category_ids=tuple(ids.get(name) for name in class_names),
        )

    def unknown_classes(self, class_names: Sequence[str]) -> list[str]:
        """Return the classes that have boxes here but are not among the names."""
        return [name for name in self.used_classes() if name not in class_names]

    def used_classes(self) -> list[str]:
        """Return the classes that have boxes here, in the order of their labels."""
        used = sorted({int(label) for boxes in self.boxes for label in boxes.labels})
        return [self.class_names[label] for label in used]

    def untaught(self, train: "CocoSplit") -> str:
        """Say in one line which classes only these images have, not the training; empty if none."""
        unknown = self.unknown_classes(train.used_classes())
        if not unknown:
            return ""
        return (
            f"{self.annotations} has boxes of {_listed(unknown)}, and {train.annotations} has "
            "none: no training teaches them; annotate some there, or remove these"
        )

    def crowded(self, detections: int) -> str:
        """Say in one line how many images hold more boxes than a detector returns; empty if none.

        Args:
            detections: How many it returns per image at most.
        """
        counts = [int((~boxes.crowd).sum()) for boxes in self.boxes]
        most = max(counts, default=0)
        if most <= detections:
            return ""
        return (
            f"{sum(count > detections for count in counts)} images of {self.annotations} hold more "
            f"than {detections} boxes, up to {most}; detector.detections is how many a detector "
            "returns per image"
        )

    def doubts(self, detections: int) -> list[str]:
        """Return what to tell before a training or an evaluation, one line each.

        Args:
            detections: How many the detector returns per image at most.
        """
        texts = self.repaired(), self.cornered(), self.crowded(detections)
        return [text for text in texts if text]

    def cornered(self) -> str:
        """Say in one line that boxes may be of smaller copies of the images; empty if not."""
        ends = [
            boxes.xyxy[:, 2:] / (image.width, image.height)
            for image, boxes in zip(self.images, self.boxes, strict=True)
        ]
        return corner_doubt(np.concatenate([np.empty((0, 2)), *ends]), self.annotations)

    def repaired(self) -> str:
        """Return in one line how many boxes were cut or left out; empty if none."""
        counts = Counter(problem.remedy for problem in self.problems)
        if not (counts["clipped"] or counts["left out"]):
            return ""
        return (
            f"of the boxes in {self.annotations}, {counts['clipped']} were cut at the border of "
            f"their image and {counts['left out']} left out; `adapt data check` tells why"
        )


def check_apart(train: CocoSplit, held_out: CocoSplit) -> None:
    """Check that no image is trained on and evaluated on.

    Raises:
        AdaptError: If there are some; says how many.
    """
    trained = {image.path.resolve() for image in train.images}
    shared = sum(image.path.resolve() in trained for image in held_out.images)
    if shared:
        raise AdaptError(
            f"{shared} images of {held_out.annotations} are training images too, of "
            f"{train.annotations}; set data.val to a split that was not trained on"
        )


def check_has_boxes(split: CocoSplit) -> None:
    """Check that there is something to train or evaluate on.

    Raises:
        AdaptError: If not.
    """
    if not split.has_boxes:
        raise AdaptError(
            f"{split.annotations} has no boxes of single objects; annotate some, or choose a split "
            "with boxes"
        )


def _listed(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" ... ({len(names)})" if len(names) > limit else "")


def _other_case(unknown: Sequence[str], class_names: Sequence[str]) -> str:
    known = {name.casefold(): name for name in class_names}
    alike = [f"{name} is {known[name.casefold()]}" for name in unknown if name.casefold() in known]
    return f" (in another case, {', '.join(alike[:3])})" if alike else ""


def load_split(root: Path, split: str, *, repair: bool = False) -> CocoSplit:
    """Find and load a split of a data set.

    The layouts of :mod:`adapt.data.formats` are known.

    Args:
        root: Folder of the data set, or the ``data.yaml`` of one in YOLO's format.
        split: Name of the split; ``train`` also finds ``train2017``, ``val`` also ``valid``.
        repair: Clip and leave out what cannot be used as it is, instead of refusing the split.

    Raises:
        AdaptError: If no or more than one split fits, or its file is not sound.
    """
    return load_place(find_split(root, split), repair=repair)


def load_place(place: Place, *, repair: bool = False) -> CocoSplit:
    """Load a split; its images are not decoded (:func:`adapt.data.check.check_split` does).

    Args:
        place: Where it lies.
        repair: Clip and leave out what cannot be used as it is, instead of refusing the split.

    Raises:
        AdaptError: If the annotations or the folder are missing, or something in them is not sound;
            with the first problem and the number of others.
    """
    split = read_split(place)
    refuse((*_turned(split), *split.problems), repair=repair)
    return split


def _turned(split: CocoSplit) -> list[Problem]:
    """Look at images with boxes that do not fit: they may fit the image as EXIF turns it.

    Repairing would train on what is left of such boxes. All images are looked at by
    :func:`adapt.data.check.check_split`.
    """
    concerned = {problem.image_id for problem in split.problems if problem.corners is not None}
    images = [image for image in split.images if image.id in concerned][:LOOKED_AT]
    turned = turned_problems(split.problems, map(inspect_image, images))
    return turned if 2 * len(turned) >= len(images) else []


def read_split(place: Place) -> CocoSplit:
    """Read what can be used of a split, repaired, and all its problems.

    Args:
        place: Where it lies.

    Raises:
        AdaptError: If the annotations or the folder are missing, or of no known format.
    """
    content = read_place(place)
    reader = Reader(place)
    records = reader.images(content.images)
    root = find_root_category(content) if place.format == "COCO" else None
    classes = reader.categories(entry for entry in content.categories if entry is not root)
    found = reader.annotations(content.annotations, records, classes)
    boxes = [annotation.box for annotation in found]
    sizes = [(annotation.image.width, annotation.image.height) for annotation in found]
    cause = box_format_problem(boxes, sizes, place.annotations) if place.format == "COCO" else None
    return CocoSplit(
        place=place,
        images=tuple(records.values()),
        boxes=_boxes_by_image(found, list(records.values()), list(classes)),
        class_names=tuple(name for name, _ in classes.values()),
        category_ids=tuple(written for _, written in classes.values()),
        problems=(*((cause,) if cause else ()), *content.problems, *reader.problems),
        root_category=(category_name(root) or "") if root else "",
    )


def _boxes_by_image(
    annotations: Sequence[Annotation], images: Sequence[CocoImage], categories: Sequence[Id]
) -> tuple[ImageBoxes, ...]:
    labels = {category: label for label, category in enumerate(categories)}
    rows: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for one in annotations:
        if one.problem is None or one.problem.remedy == "clipped":
            row = (*one.corners, labels[one.category], one.crowd, one.area)
            rows[one.image.id].append(row)
    return tuple(_to_boxes(rows[image.id]) for image in images)


def _to_boxes(rows: list[tuple[float, ...]]) -> ImageBoxes:
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    return ImageBoxes(
        xyxy=table[:, :4],
        labels=table[:, 4].astype(np.int64),
        crowd=table[:, 5].astype(np.bool_),
        areas=table[:, 6],
    )
