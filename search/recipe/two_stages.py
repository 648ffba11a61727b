"""Is everything else of a recipe there for a two-stage detector too?"""

from collections.abc import Sequence

from adapt.detector.config import HeadKind
from adapt.errors import AdaptError
from adapt.runtime import Precision, Runtime


def check_two_stages(
    runtime: Runtime, precision: Precision, raced: Sequence[HeadKind] | None
) -> None:
    """Check what a recipe asks for beside ``detector.head = "faster-rcnn"``.

    Args:
        runtime: Of the deployed detector.
        precision: Of the deployed detector.
        raced: Heads that race with each other, if any.

    Raises:
        AdaptError: With the field and its value.
    """
    if runtime.startswith("tensorrt"):
        raise AdaptError(
            "detector.head 'faster-rcnn' is deployed in ONNX Runtime only, and device.runtime "
            f"is {runtime!r}; set it to 'ort-cpu' or 'ort-cuda', or detector.head to another"
        )
    if precision == "int8":
        raise AdaptError(
            "detector.head 'faster-rcnn' is deployed in fp32 or fp16, and device.precision is "
            "'int8'; set it to 'fp32', or detector.head to another"
        )
    if raced:
        raise AdaptError(
            "joint.head chooses among one-stage detectors, and detector.head is 'faster-rcnn'; "
            f"leave joint.head out, which is {list(raced)}"
        )
