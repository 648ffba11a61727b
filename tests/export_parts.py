"""Which small detector and files do the export tests share?"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from core_parts import once
from torch import nn
from torchvision.models.detection import RetinaNet

from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.faster_rcnn import FasterRCNN
from adapt.detector.file import DetectorInfo, save_detector
from adapt.detector.retinanet import tower_std
from adapt.detector.ssdlite import SeparableHead
from adapt.runtime import Tail
from adapt.sources import mobilenet_v2
from export.graph.detector import DeployedDetector, export_detector
from export.graph.options import GraphOptions
from export.graph.rest import export_rest
from export.quantize import Quantizer
from export.run.inference import ImageDetections, batch_detections, unit
from export.run.matching import match_detections

SIZE = InputSize(128, 160)
INFO = DetectorInfo(
    mobilenet_v2(),
    DetectorConfig(num_classes=3, fpn_width=32, head_depth=1, candidates=150),
    SIZE,
    ("circle", "square", "star"),
    (7, 18, "90"),  # ids as a file may have them
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
        if isinstance(model, FasterRCNN):
            _fire_stages(model)
        else:
            _fire_levels(model.head) if isinstance(model.head, SeparableHead) else _fire(model.head)
    return model.eval()


def _fire(head: nn.Module) -> None:
    # Scores near 1 would all be ties, so the heads' signal is kept small.
    for branch in (head.classification_head, head.regression_head):
        for layer in branch.conv:
            layer[0].weight.mul_(0.01 / tower_std(layer[0].in_channels))
    outputs = head.classification_head.cls_logits, head.regression_head.bbox_reg
    scoring, placing = (list(output.modules())[-1] for output in outputs)  # a separable one's 1x1
    nn.init.normal_(scoring.weight, std=0.1)
    nn.init.constant_(scoring.bias, -2.0)
    nn.init.normal_(placing.weight, std=0.02)


def _fire_levels(head: SeparableHead) -> None:
    for _, layer in head.classification_head.module_list:
        nn.init.normal_(layer.weight, std=0.1)
        layer.bias.view(-1, head.classification_head.num_classes + 1)[:, 0] = 2.0  # background
    for _, layer in head.regression_head.module_list:
        nn.init.normal_(layer.weight, std=0.2)


def _fire_stages(model: FasterRCNN) -> None:
    proposing, deciding = model.rpn.head, model.roi_heads.box_predictor
    # torchvision's first layers leave hardly any of the signal: all boxes would score alike.
    for layer in (model.roi_heads.box_head.fc6, model.roi_heads.box_head.fc7):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.normal_(proposing.cls_logits.weight, std=0.1)
    nn.init.normal_(proposing.bbox_pred.weight, std=0.02)
    nn.init.normal_(deciding.cls_score.weight, std=0.1)
    nn.init.normal_(deciding.bbox_pred.weight, std=0.1)


def images(number: int, seed: int = 0) -> np.ndarray:
    """Random uint8 images ``[number, 3, H, W]``."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, 3, SIZE.height, SIZE.width), dtype=np.uint8)


def tensors(number: int, seed: int = 0) -> torch.Tensor:
    """The same images as ``Tensor[number, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(unit(images(number, seed)))


def exported(folder: Path, tail: Tail = "tensor-nms") -> Path:
    """The small detector as ONNX; written once per folder."""
    options, provenance = GraphOptions(tail=tail), {"run": "test"}

    def export(path: Path) -> None:
        export_detector(small_detector(), INFO, path, options, provenance=provenance)

    return once(folder / f"{tail}.onnx", export)


def dynamic(folder: Path) -> Path:
    """The small detector as ONNX for one to four images of bytes; written once per folder."""
    options = GraphOptions(batch=4, dynamic=True, pixels="uint8")

    def export(path: Path) -> None:
        export_detector(small_detector(), INFO, path, options, provenance={})

    return once(folder / "dynamic.onnx", export)


def half(folder: Path) -> Path:
    """The small detector as ONNX in fp16 for one image of bytes; written once per folder."""
    options = GraphOptions(precision="fp16", pixels="uint8")

    def export(path: Path) -> None:
        export_detector(small_detector(), INFO, path, options, provenance={})

    return once(folder / "half.onnx", export)


def int8(folder: Path) -> Path:
    """The small detector as ONNX in int8; written once per folder."""
    batches = [unit(images(1, seed)) for seed in range(3)]
    return once(folder / "int8.onnx", Quantizer(exported(folder), batches).write)


def saved(folder: Path) -> Path:
    """The small detector as safetensors; written once per folder."""

    def save(path: Path) -> None:
        save_detector(path, small_detector(), INFO)

    return once(folder / "detector.safetensors", save)


def rest(folder: Path) -> Path:
    """All behind the backbone of the small detector as ONNX; written once per folder."""
    return once(folder / "rest.onnx", lambda path: export_rest(INFO.detector, SIZE, path))


def assert_detects_as_torchvision(info: DetectorInfo, tail: Tail) -> None:
    """Compare the detections of what is deployed with torchvision's, of an awake detector."""
    model, batch = awake(info.build, SIZE), tensors(2, 0)
    outputs = DeployedDetector(model, info, tail)(batch)
    found = batch_detections(*(output.numpy() for output in outputs))
    for ours, theirs in zip(found, model(list(batch)), strict=True):
        expected = ImageDetections.from_torchvision(theirs)
        # Scores that are equal but for rounding have no order.
        report = match_detections(ours, expected, score_tol=1e-6, box_tol=1e-3)
        assert report.matched == len(ours.scores) == len(expected.scores) > 5
