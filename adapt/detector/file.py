"""How is a trained detector stored so that it can be used without its recipe?"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture
from adapt.artifacts import atomic_path, check_header, header, parsing, typed
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector
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
        """Read what :meth:`to_dict` wrote.

        Raises:
            LookupError: If a field is missing.
            TypeError: If there is no list where there must be one.
            ValueError: If a value is wrong.
        """
        info = cls(
            architecture=Architecture.from_dict(content["architecture"]),
            detector=typed(DetectorConfig, content["detector"]),
            input=typed(InputSize, content["input"]),
            classes=typed(tuple[str, ...], content["classes"]),
            category_ids=typed(tuple[int | str, ...], content.get("category_ids", ())) or None,
        )
        if not len(info.classes) == len(info.written_ids) == info.detector.num_classes:
            raise AdaptError(
                f"it names {len(info.classes)} classes and {len(info.written_ids)} ids of them, "
                f"and detects {info.detector.num_classes}"
            )
        return info


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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise AdaptError(
            f"detector {path} is not a readable safetensors file ({error}); pass the "
            "detector.safetensors that `adapt finetune` wrote"
        ) from error
    content = check_header(description, "detector", path)
    with parsing("detector", path, "write it again with `adapt finetune`"):
        return DetectorInfo.from_dict(content), content


def load_detector(path: Path) -> tuple[RetinaNet, DetectorInfo]:
    """Rebuild a detector in evaluation mode from its file.

    Raises:
        AdaptError: If the file is missing, truncated, or not written by ``adapt``.
    """
    info, _ = read_detector_info(path)
    with torch.device("meta"):  # a wrong width could need more memory than there is
        built = {name: list(tensor.shape) for name, tensor in info.build().state_dict().items()}
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if held != built:
        raise AdaptError(
            f"the weights in {path} do not fit its own description; write it again with "
            "`adapt finetune`"
        )
    model = info.build()
    model.load_state_dict(load_file(path))
    return model.eval(), info
