"""What must be known of another tool's ONNX file to detect with it? (`model.peer.toml`)"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adapt.artifacts import read_text
from adapt.errors import FORBID_UNKNOWN, AdaptError
from search.recipe.content import validated

Form = Literal["yolo", "yolo-objectness", "detr", "nms", "torchvision"]
Triple = tuple[float, float, float]
# DETR, its descendants and RF-DETR; RT-DETR takes images in [0, 1] as they are.
IMAGENET: Mapping[str, Triple] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
DEFAULTS: Mapping[Form, Mapping[str, Any]] = {
    "yolo": {},
    "yolo-objectness": {"nms_threshold": 0.6},  # that of YOLOv5's own validation
    "detr": {"resize": "stretch", "antialias": True, "score_threshold": 0.0, **IMAGENET},
    "nms": {"score_threshold": 0.0},
    # Normalisation, and the final size, are inside of its graphs.
    "torchvision": {"resize": "letterbox-corner", "score_threshold": 0.0},
}


@dataclass(frozen=True)
class Settings:
    """How images become the input of another tool's file, and its outputs detections.

    The defaults are those of YOLO's own validation; :data:`DEFAULTS` says what other forms have.

    Attributes:
        form: What the outputs hold; None: their shapes tell. ``yolo`` is ``[N, 4 + C, A]`` of
            YOLOv8 and later, ``yolo-objectness`` ``[N, A, 5 + C]`` of YOLOv5 and v7, both with
            middles and sizes in pixels; ``detr`` boxes ``[N, Q, 4]``, middles and sizes as shares
            of the input, and logits ``[N, Q, C]``; ``nms`` ``[N, K, 6]`` with corners in pixels,
            score and class, as a file with NMS inside of it gives them; ``torchvision`` boxes
            ``[K, 4]``, corners in pixels, scores ``[K]`` and labels ``[K]`` of one image.
        input: Height and width, for files that take any size.
        resize: ``letterbox`` pads on both sides, ``letterbox-corner`` right and below, ``stretch``
            changes the aspect ratio.
        antialias: Whether images are filtered as they are made smaller. OpenCV does not.
        padding: Grey value of the padding, 0 to 255.
        channels: Their order.
        white: Value of a white pixel: 1 or 255.
        mean: Subtracted from the pixels after that.
        std: What they are divided by then.
        activation: How logits of DETR become scores; of ``softmax`` the last class is no object.
        classes: Names in the order of the outputs; an empty one is of no use. None: those that the
            file names, or else the data set's in their order.
        score_threshold: What scores no more is no detection.
        nms_threshold: Overlap at which the worse of two boxes of a class is left out.
        candidates: Boxes before that, at most, by score.
        detections: Of an image, at most.
    """

    __pydantic_config__ = FORBID_UNKNOWN
    form: Form | None = None
    input: tuple[int, int] | None = None
    resize: Literal["letterbox", "letterbox-corner", "stretch"] = "letterbox"
    antialias: bool = False
    padding: int = 114
    channels: Literal["RGB", "BGR"] = "RGB"
    white: float = 1.0
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    classes: tuple[str, ...] | None = None
    score_threshold: float = 0.001
    nms_threshold: float = 0.7
    candidates: int = 1000
    detections: int = 300  # of YOLO's own validation, and of RF-DETR's

    def __post_init__(self) -> None:
        for name in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise AdaptError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("candidates", "detections", "white"):
            if not getattr(self, name) > 0:
                raise AdaptError(f"{name} must be positive, got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise AdaptError(f"std must be positive, got {list(self.std)}")

    @property
    def unused(self) -> list[int]:
        """Places of the classes that are of no use."""
        return [place for place, name in enumerate(self.classes or ()) if not name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return asdict(self)


def sidecar(file: Path) -> Path:
    """Return where the settings of an ONNX file stand, if it has any."""
    return file.with_suffix(".peer.toml")


def settings_of(file: Path, form: Form | None = None) -> Settings:
    """Return the settings of another tool's file: what stands beside it, or the form's defaults.

    Args:
        file: The ONNX file.
        form: Its form, once that is known.

    Raises:
        AdaptError: If the file beside it is no TOML, or a field is unknown or wrong.
    """
    path = sidecar(file)
    try:
        content = tomllib.loads(read_text(path, "settings")) if path.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise AdaptError(f"{path} is not TOML: {error}") from error
    given = validated(Settings, content, str(path))
    form = given.form or form
    if form is None:
        return given
    return validated(Settings, {**DEFAULTS[form], **content, "form": form}, str(path))
