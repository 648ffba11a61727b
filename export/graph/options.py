"""Which options does an ONNX export have, and which inputs and outputs has its graph?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from pydantic import PositiveInt

from adapt.artifacts import typed
from adapt.detector.file import DetectorInfo
from adapt.errors import AdaptError
from adapt.runtime import Tail
from export.graph.onnx_file import OPSET
from export.graph.precision import FloatPrecision

DETECTIONS = ("num_detections", "boxes", "scores", "classes")
RAW_HEADS = ("cls_logits", "bbox_regression")

Pixels = Literal["float32", "uint8"]


@dataclass(frozen=True)
class GraphOptions:
    """How a detector is written as ONNX.

    Attributes:
        tail: How the graph ends. ``tensor-nms`` gives detections, runs everywhere and can be
            captured in a CUDA graph; ``onnx-nms`` gives detections and is faster on ONNX Runtime;
            ``none`` gives the raw heads: logits and box deltas.
        precision: Of backbone, pyramid and heads; everything after them is fp32.
        batch: Images per inference.
        dynamic: Whether fewer images, down to one, are accepted too.
        pixels: Type of the images: float32 in [0, 1], or uint8, a quarter of the bytes to copy.
        opset: ONNX operator set.

    Raises:
        AdaptError: If a value is unknown or out of range.
    """

    tail: Tail = "tensor-nms"
    precision: FloatPrecision = "fp32"
    batch: int = 1
    dynamic: bool = False
    pixels: Pixels = "float32"
    opset: int = OPSET

    def __post_init__(self) -> None:
        for name, known in (("tail", Tail), ("pixels", Pixels)):
            if getattr(self, name) not in get_args(known):
                allowed = ", ".join(map(repr, get_args(known)))
                raise AdaptError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.precision not in get_args(FloatPrecision):
            raise AdaptError(
                f"precision must be 'fp32' or 'fp16', got {self.precision!r}; int8 is calibrated "
                "from an fp32 file"
            )
        if self.batch < 1:
            raise AdaptError(f"batch must be at least 1, got {self.batch}")
        if self.dynamic and self.batch < 2:
            raise AdaptError("a dynamic batch needs room for 2 images or more; pass --batch")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return RAW_HEADS if self.tail == "none" else DETECTIONS

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


@dataclass(frozen=True)
class ImageInput:
    """The input ``images`` of an exported detector.

    Attributes:
        shape: (B, 3, H, W); with a dynamic batch, B is the largest.
        dynamic: Whether fewer images are accepted too.
        pixels: ``float32`` in [0, 1] or ``uint8``.
    """

    shape: tuple[int, int, int, int]
    dynamic: bool
    pixels: Pixels

    @classmethod
    def of(cls, info: DetectorInfo, content: Mapping[str, Any]) -> "ImageInput":
        """Read it from a file's header.

        Raises:
            LookupError: If a field is missing.
            ValueError: If a value is wrong.
        """
        size = info.input
        shape = (typed(PositiveInt, content["batch"]), 3, size.height, size.width)
        return cls(shape, typed(bool, content["dynamic"]), typed(Pixels, content["pixels"]))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether images of this shape are accepted."""
        return shape == self.shape or (
            self.dynamic and shape[1:] == self.shape[1:] and 1 <= shape[0] <= self.shape[0]
        )

    def __str__(self) -> str:
        batch, *rest = self.shape
        return "x".join(map(str, (f"1-{batch}" if self.dynamic else batch, *rest)))


def rest_inputs(finest_level: int) -> list[str]:
    """Return the inputs' names of the detector without its backbone: laterals' outputs and P6."""
    return [*(f"lateral{level}" for level in range(finest_level, 6)), "p6"]
