"""Which small detector and files do the export tests share?"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import RetinaNet

from adapt.architecture import mobilenet_v2
from adapt.data.images import InputSize
from adapt.detector.file import DetectorInfo, save_detector
from adapt.detector.retinanet import DetectorConfig
from adapt.runtime import Tail
from export.graph.detector import export_detector
from export.graph.options import GraphOptions
from export.run.runner import unit

SIZE = InputSize(128, 160)
INFO = DetectorInfo(
    mobilenet_v2(),
    DetectorConfig(num_classes=3, fpn_width=32, head_depth=1, candidates=150),
    SIZE,
    ("circle", "square", "star"),
)


@functools.cache
def small_detector() -> RetinaNet:
    """A random detector that finds more than 100 overlapping boxes in every image."""
    return awake(INFO.build, SIZE)


def awake(build: Callable[[], RetinaNet], size: InputSize) -> RetinaNet:
    """A random detector whose features have normal statistics and whose heads fire."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the average of all batches
        for _ in range(2):
            model.backbone(torch.randn(4, 3, size.height, size.width))
        head = model.head.classification_head.cls_logits
        nn.init.normal_(head.weight, std=0.1)
        nn.init.constant_(head.bias, -2.0)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.02)
    return model.eval()


def images(number: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images ``[number, 3, H, W]``."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, 3, SIZE.height, SIZE.width), dtype=np.uint8)


def tensors(number: int, seed: int = 0) -> torch.Tensor:
    """The same images as ``Tensor[number, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(unit(images(number, seed)))


@functools.cache
def exported(folder: Path, tail: Tail = "tensor-nms") -> Path:
    """The small detector as ONNX; written once per folder."""
    options = GraphOptions(tail=tail)
    return export_detector(
        small_detector(), INFO, folder / f"{tail}.onnx", options, provenance={"run": "test"}
    )


@functools.cache
def saved(folder: Path) -> Path:
    """The small detector as safetensors; written once per folder."""
    path = folder / "detector.safetensors"
    save_detector(path, small_detector(), INFO)
    return path
