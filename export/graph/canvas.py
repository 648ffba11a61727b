"""Which fixed input shapes is a detector deployed with, and which of its files belong together?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from adapt.artifacts import typed
from adapt.data.images import MEAN, Fitting, InputSize
from adapt.errors import AdaptError

Orientation = Literal["landscape", "portrait"]
Orientations = Literal["both", "landscape", "portrait"]
ORIENTATIONS: tuple[Orientation, Orientation] = get_args(Orientation)
# Of the header: what differs between the two files of one detector.
_OF_ONE_FILE = {"input", "fitting", "calibration_batches", "kept_in_fp32"}


@dataclass(frozen=True)
class Canvas:
    """The fixed input shape of an exported file, and for which images it is.

    Attributes:
        size: The input.
        resize: How images were scaled in training.
        orientation: Of the images that are seen as in training; None if all are.
        companion: Name of the ONNX file for the others; None if there is none.
    """

    size: InputSize
    resize: InputSize
    orientation: Orientation | None = None
    companion: str | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Canvas":
        """Read it from a file's header; files of adapt 0.1 are letterboxes.

        Raises:
            LookupError: If a field is missing.
            TypeError: If a value is none of a kind.
            ValueError: If a value is wrong.
        """
        size = typed(InputSize, content["input"])
        fitting = content.get("fitting")
        if not fitting:
            return cls(size, size)
        resize = typed(InputSize, fitting["resize"])
        orientation = typed(Orientation | None, fitting["orientation"])
        companion = typed(str | None, fitting["companion"])
        if companion is not None and Path(companion).name != companion:
            raise AdaptError(f"fitting.companion must name a file beside it, got {companion!r}")
        return cls(size, resize, orientation, companion)

    def to_dict(self) -> dict[str, Any]:
        """Return what a header says of it beside ``input``: nothing of a letterbox."""
        if self.resize.resize == "letterbox":
            return {}
        fitting = {
            "resize": self.resize.to_dict(),
            "padding": MEAN,
            "orientation": self.orientation,
            "companion": self.companion,
        }
        return {"fitting": fitting}

    @property
    def fitting(self) -> Fitting:
        """How images are fitted into the input of this file alone."""
        return Fitting(self.resize, (self.size,))

    def smaller(self) -> str:
        """Return how images of the other orientation are seen by this file alone; or nothing."""
        if self.orientation is None:
            return ""
        (other,) = {*ORIENTATIONS} - {self.orientation}
        scale = self.fitting.relative_scale(self.size.width, self.size.height)
        return f"{other} images are seen at down to {scale:.2f} of the scale of training"


def planned(
    size: InputSize, path: Path, orientation: Orientations | None = None
) -> dict[Path, Canvas]:
    """Return the ONNX files that a detector is deployed as, with the canvas of each.

    A detector that was trained by the shortest edge gets a canvas for landscape images and one for
    portrait ones, so that the deployed files see every image as training did.

    Args:
        size: The detector's input.
        path: The first file, or the only one.
        orientation: Of the images that are seen so; all by default.

    Raises:
        AdaptError: If an orientation is asked for, but one canvas holds all images.
    """
    canvases = size.canvases()
    if len(canvases) == 1:
        if orientation:
            raise AdaptError(
                f"one canvas of {canvases[0].height}x{canvases[0].width} sees images of every "
                f"orientation as training did (input.resize is {size.resize!r}); leave out "
                "--orientation"
            )
        return {path: alone(size)}
    of_orientation = dict(zip(ORIENTATIONS, canvases, strict=True))
    if orientation in ORIENTATIONS:
        return {path: Canvas(of_orientation[orientation], size, orientation)}
    portrait = portrait_path(path)
    return {
        path: Canvas(canvases[0], size, "landscape", portrait.name),
        portrait: Canvas(canvases[1], size, "portrait", path.name),
    }


def alone(size: InputSize) -> Canvas:
    """Return the canvas of a detector's only file: for all images, or for landscape ones."""
    canvases = size.canvases()
    return Canvas(canvases[0], size, "landscape" if len(canvases) == 2 else None)


def portrait_path(path: Path) -> Path:
    """Return the name of the portrait file beside a landscape one: ``D.portrait.onnx``."""
    return path.with_name(f"{path.stem}.portrait{path.suffix}")


def companions(path: Path, canvas: Canvas) -> list[Path]:
    """Return where a file's companion may lie: beside it, also if both files were renamed."""
    if canvas.companion is None:
        return []
    recorded = path.with_name(canvas.companion).with_suffix(path.suffix)
    if canvas.orientation == "landscape":
        return [portrait_path(path), recorded]
    return [path.with_name(f"{path.stem.removesuffix('.portrait')}{path.suffix}"), recorded]


def belong_together(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two headers are of the two files of one export."""
    a, b = Canvas.of(first), Canvas.of(second)
    orientations = {a.orientation, b.orientation} == {*ORIENTATIONS}
    same = all(
        first.get(name) == second.get(name)
        for name in (first.keys() | second.keys()) - _OF_ONE_FILE
    )
    return orientations and a.resize == b.resize and b.companion is not None and same
