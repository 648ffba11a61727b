"""What can a latency be measured of? (a unit, or a whole detector with random weights)"""

from dataclasses import dataclass

from adapt.architecture import Architecture
from adapt.cost.units import MBConvUnit, Measurable
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig

# Timed beside every sample to notice a slow machine. Its feature maps are larger than a core's
# caches: a smaller unit would not notice that other programs use up the memory bandwidth.
ANCHOR = MBConvUnit(24, 24, 3, 6, 1, True, 64, 80)


@dataclass(frozen=True)
class WholeDetector:
    """A detector that is measured as a whole, from images to detections.

    Attributes:
        network: Architecture of the backbone.
        detector: The detector around it.
        size: Letterbox of the input.
    """

    network: Architecture
    detector: DetectorConfig
    size: InputSize


Subject = Measurable | WholeDetector
