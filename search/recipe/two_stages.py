"""Is everything else of a recipe there for a two-stage detector too?"""

from adapt.errors import AdaptError
from adapt.runtime import Runtime


def check_two_stages(field: str, runtime: Runtime) -> None:
    """Check what a recipe asks for beside the head ``faster-rcnn``.

    Args:
        field: That asks for this head, or has it among its candidates.
        runtime: Of the deployed detector.

    Raises:
        AdaptError: With the field and its value.
    """
    if runtime.startswith("tensorrt"):
        raise AdaptError(
            f"{field} 'faster-rcnn' is deployed in ONNX Runtime only, and device.runtime "
            f"is {runtime!r}; set it to 'ort-cpu' or 'ort-cuda', or {field} to another"
        )
