"""Where does a split lie, and what is read from there?"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from adapt.artifacts import read_text
from adapt.data.repair import Problem

Format = Literal["COCO", "Pascal VOC", "YOLO"]
Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a split lies.

    Attributes:
        annotations: The file or folder that says which images and boxes it has: COCO's JSON file,
            a list of images, or a folder with a file for every image.
        images: The folder that names of images are relative to.
        format: How annotations are written.
        classes: The file that names the classes; None where the annotations do so.
        root: The folder of the data set; None if only the others are known.
    """

    annotations: Path
    images: Path
    format: Format = "COCO"
    classes: Path | None = None
    root: Path | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that no name of an image may lead out of."""
        return (self.root, self.images) if self.root else (self.images,)

    def absolute(self) -> "Place":
        """Return it as any working directory finds it."""
        return replace(
            self,
            annotations=self.annotations.absolute(),
            images=self.images.absolute(),
            classes=self.classes and self.classes.absolute(),
            root=self.root and self.root.absolute(),
        )


class Lists(NamedTuple):
    """The content of a split, as COCO writes it.

    Attributes:
        images: Entries of images.
        annotations: Entries of boxes.
        categories: Entries of classes.
        problems: What is wrong and has no entry.
    """

    images: Entries
    annotations: Entries
    categories: Entries
    problems: tuple[Problem, ...] = ()


def name_below(folder: Path, path: Path) -> Path:
    """Return the name of a file below a folder; the path itself of one that lies elsewhere."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def listed_names(file: Path) -> list[str]:
    """Return the lines of a list of images, without empty ones.

    Raises:
        AdaptError: If it cannot be read.
    """
    lines = (line.strip() for line in read_text(file, "list of images").splitlines())
    return [line for line in lines if line]


Sources = tuple[list[Path], list[str]]  # files that say what a split holds, and names of its images
