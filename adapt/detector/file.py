"""How is a trained detector stored so that it can be used without its recipe?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture
from adapt.artifacts import atomic_path, check_header, header
from adapt.data.images import InputSize
from adapt.detector.retinanet import DetectorConfig, build_detector
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector file says beside the weights: how to build it, and what its labels mean.

    Attributes:
        architecture: The backbone.
        detector: Pyramid, heads and post-processing.
        input: Size of the input and how images are fitted into it.
        classes: Class names in label order.
        category_ids: Ids that the annotation file of the training images gives them.
    """

    architecture: Architecture
    detector: DetectorConfig
    input: InputSize
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...] | None = None

    @property
    def written_ids(self) -> tuple[int | str, ...]:
        """The ids that detections are written with; counted from 1 where the file has none."""
        return self.category_ids or tuple(range(1, len(self.classes) + 1))

    def build(self) -> RetinaNet:
        """Build the detector with fresh weights."""
        return build_detector(Backbone(self.architecture), self.detector)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON content."""
        return {
            "architecture": self.architecture.to_dict(),
            "detector": self.detector.to_dict(),
            "input": self.input.to_dict(),
            "classes": list(self.classes),
            **({"category_ids": list(self.category_ids)} if self.category_ids else {}),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "DetectorInfo":
        """Read what :meth:`to_dict` wrote."""
        return cls(
            architecture=Architecture.from_dict(content["architecture"]),
            detector=DetectorConfig(**content["detector"]),
            input=InputSize(**content["input"]),
            classes=tuple(content["classes"]),
            category_ids=tuple(content.get("category_ids", ())) or None,
        )


def save_detector(path: Path, model: RetinaNet, info: DetectorInfo, **provenance: Any) -> None:
    """Write weights and description as one safetensors file."""
    description = json.dumps(header("detector", **provenance, **info.to_dict()))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"adapt": description})


def read_detector_info(path: Path) -> tuple[DetectorInfo, dict[str, Any]]:
    """Read the description of a detector file without its weights.

    Returns:
        The description, and the file's whole header (provenance included).

    Raises:
        AdaptError: If the file is missing, truncated, or not written by ``adapt``.
    """
    if not path.is_file():
        raise AdaptError(f"detector {path} does not exist; `adapt finetune` writes it")
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {}).get("adapt", "{}"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise AdaptError(
            f"detector {path} is not a readable safetensors file ({error}); pass the "
            "detector.safetensors that `adapt finetune` wrote"
        ) from error
    content = check_header(description, "detector", path)
    try:
        return DetectorInfo.from_dict(content), content
    except (KeyError, TypeError, AdaptError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise AdaptError(
            f"detector {path} describes itself wrongly ({reason}); write it again with "
            "`adapt finetune`"
        ) from error


def load_detector(path: Path) -> tuple[RetinaNet, DetectorInfo]:
    """Rebuild a detector in evaluation mode from its file.

    Raises:
        AdaptError: If the file is missing, truncated, or not written by ``adapt``.
    """
    info, _ = read_detector_info(path)
    model = info.build()
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise AdaptError(
            f"the weights in {path} do not fit its own description; write it again with "
            "`adapt finetune`"
        ) from error
    return model.eval(), info
