"""Which tiny detector does a verification deploy, and what must it detect?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from onnx.utils import Extractor
from PIL import Image
from torch import nn
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture, Block
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo, save_detector
from adapt.runtime import Precision
from adapt.space import Operation
from export.deploy import Deployment
from export.deploy import write_graphs as write_deployed
from export.engine.configure import BuildOptions
from export.graph.onnx_file import description_of, load_onnx, save_onnx, with_outputs
from export.graph.options import RAW_HEADS
from export.graph.precision import int8_for, rest_precision
from export.run.inference import Array, ImageDetections
from export.run.runner import TorchRunner

SIZE = InputSize(96, 128)
BATCH = 3  # of the dynamic batch; odd, so that nothing fits by chance
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
INFO = DetectorInfo(
    # Every width a multiple of 8, as tensor cores like them; residual and strided operations.
    Architecture(
        "mobilenet_v2",
        16,
        16,
        (2, 3, 4),
        tuple(Block(2, 16 * n, (Operation(3, 3), Operation(5, 6))) for n in (1, 2, 2, 3)),
    ),
    DetectorConfig(num_classes=3, fpn_width=32, head_depth=1, candidates=100, nms_candidates=300),
    SIZE,
    ("circle", "square", "star"),
)


@dataclass(frozen=True)
class Files:
    """Where a verification keeps its files.

    Attributes:
        folder: A temporary folder.
    """

    folder: Path

    @property
    def detector(self) -> Path:
        """The detector as a file of PyTorch."""
        return self.folder / "detector.safetensors"

    @property
    def photos(self) -> Path:
        """A folder of images to calibrate on."""
        return self.folder / "photos"

    @property
    def timing_cache(self) -> Path:
        """Tactic timings that all engines share."""
        return self.folder / "timing.cache"

    def graph(self, runtime: str, precision: Precision, tail: str) -> Path:
        """The ONNX file that ends in ``detections`` or raw ``heads``; int8 differs by runtime."""
        kind: str = precision
        if precision == "int8":
            kind += f"-{int8_for(runtime)}-{rest_precision(runtime, precision)}"
        return self.folder / f"{kind}-{tail}.onnx"

    def artifact(self, runtime: str, precision: Precision, tail: str) -> Path:
        """What a runtime runs."""
        if runtime == "torch":
            return self.detector
        if runtime.startswith("ort"):
            return self.graph(runtime, precision, tail)
        return self.folder / f"{runtime}-{precision}-{tail}.plan"


def images(number: int = BATCH, seed: int = 0) -> Array:
    """Return random uint8 images ``[number, 3, H, W]``."""
    chance = np.random.default_rng(seed)
    return chance.integers(0, 256, (number, 3, SIZE.height, SIZE.width), dtype=np.uint8)


def write_detector(files: Files) -> None:
    """Write the detector with random weights, and images to calibrate on."""
    files.photos.mkdir()
    for number, pixels in enumerate(images(2 * BATCH, seed=1)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(files.photos / f"{number}.png")
    save_detector(files.detector, _awake(INFO.build), INFO)


def _awake(build: Callable[[], RetinaNet]) -> RetinaNet:
    """Return a random detector whose features have normal statistics and whose heads fire."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # a cumulative mean
        for _ in range(2):
            model.backbone(torch.randn(4, 3, SIZE.height, SIZE.width))
        scoring = model.head.classification_head.cls_logits
        nn.init.normal_(scoring.weight, std=0.1)
        nn.init.constant_(scoring.bias, -2.0)
        nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.02)
    return model.eval()


def write_graphs(files: Files, runtime: str, precision: Precision) -> None:
    """Export the detector as `adapt export` does for a runtime, and once more with raw heads."""
    deployment = Deployment(
        tail="tensor-nms",
        precision=precision,
        batch=BATCH,
        dynamic=True,
        calibration=[files.photos] if precision == "int8" else (),
        engine=BuildOptions() if runtime.startswith("tensorrt") else None,
        int8_for=int8_for(runtime) if precision == "int8" else None,
    )
    detections = files.graph(runtime, precision, "detections")
    write_deployed(files.detector, detections, deployment)
    model = load_onnx(detections)
    description = {**description_of(model), "tail": "none"}
    # Without what follows the heads, so that an engine's layers are those of the network.
    heads = Extractor(with_outputs(model, RAW_HEADS)).extract_model(["images"], list(RAW_HEADS))
    save_onnx(heads, description, files.graph(runtime, precision, "heads"))


def expected_heads(files: Files, pixels: Array) -> dict[str, Array]:
    """Return the raw heads that eager PyTorch computes on the processor in fp32."""
    with TorchRunner(files.detector, device=torch.device("cpu")) as runner:
        return runner.heads(pixels)


def expected_detections(files: Files, pixels: Array) -> Sequence[ImageDetections]:
    """Return what eager PyTorch detects on the processor in fp32."""
    with TorchRunner(files.detector, device=torch.device("cpu")) as runner:
        return runner.infer(pixels)
