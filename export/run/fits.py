"""Do two artifacts see images at the same scale, and find the same, each fitting its own way?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt.data.images import open_image
from export.run.inference import ImageDetections, Runner
from export.run.matching import MatchReport, MatchTotals, Tolerances

# Rounding to whole pixels changes the scale of small images by a percent.
SAME_SCALE = 0.02


@dataclass(frozen=True)
class FitReport:
    """How two artifacts of a detector fit the same images into their inputs.

    Attributes:
        other_scale: Number of images that the two see at different scales.
        scale: Of the second relative to the first, where they differ most.
        image: That image.
        match: What the two find, within tolerances as wide as those of int8: padding changes
            detections at the border of an image.
    """

    other_scale: int
    scale: float
    image: str
    match: MatchReport

    @property
    def same(self) -> bool:
        """Whether the two see all images at the same scale."""
        return self.other_scale == 0

    def sentence(self, images: int) -> str:
        """Say how many of so many images are seen at another scale, and at which."""
        return (
            f"{self.other_scale} of {images} images are seen at another scale, {self.image} at "
            f"{self.scale:.2f} of that of the first (then {self.match.missing} detections are "
            f"missing and {self.match.extra} are new)"
        )


def compare_fits(a: Runner, b: Runner, images: Sequence[Path]) -> FitReport:
    """Compare what two artifacts find in images that each fits into its input in its own way.

    Args:
        a: Runner of the artifact to compare with.
        b: Runner of the other one.
        images: Image files.

    Raises:
        AdaptError: If an image cannot be read.
    """
    totals = MatchTotals(a.info.detector, Tolerances.of("int8"))
    scales: dict[str, float] = {}
    for path in images:
        image = open_image(path)
        scale = a.fitting.scale(image.height, image.width)
        scales[str(path)] = b.fitting.scale(image.height, image.width) / scale
        found = [_scaled(runner.detect([image])[0], scale) for runner in (a, b)]
        totals.add(str(path), *found)
    worst = max(scales, key=lambda name: abs(scales[name] - 1))
    other = sum(abs(scale - 1) > SAME_SCALE for scale in scales.values())
    return FitReport(other, scales[worst], worst, totals.total)


def _scaled(found: ImageDetections, scale: float) -> ImageDetections:
    """Return detections of an image in pixels of the input, in which tolerances count."""
    return ImageDetections(found.boxes * scale, found.scores, found.labels)
