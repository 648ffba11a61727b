"""How is the part of a detector that no choice of a search changes written, to be measured?"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from adapt.artifacts import header
from adapt.cost.units import pyramid_sizes
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.faster_rcnn import FasterRCNN
from adapt.detector.retinanet import build_detector, levels_after
from adapt.detector.ssdlite import SeparableHead
from adapt.network.backbone import Backbone
from adapt.runtime import Tail
from adapt.sources import mobilenet_v2
from export.graph.detector import in_precision
from export.graph.onnx_file import GraphSignature, write_onnx
from export.graph.options import DETECTIONS, rest_inputs
from export.graph.postprocess import Outputs
from export.graph.precision import FloatPrecision
from export.graph.ranking import lowest_logit
from export.graph.two_stage import postprocess_of

FIRING = 4.0  # logit of a sure score, and how far above the threshold's it is


class RestOfDetector(nn.Module):
    """Outputs of the lateral convolutions to detections (:class:`adapt.cost.units.Rest`).

    No choice of the search changes this part of a detector.
    """

    def __init__(
        self, model: RetinaNet, detector: DetectorConfig, size: InputSize, tail: Tail = "tensor-nms"
    ) -> None:
        super().__init__()
        self.fpn = model.backbone.fpn
        self.postprocess = postprocess_of(model, detector, size, tail)

    def forward(self, *maps: Tensor) -> Outputs:
        """Return ``num_detections, boxes, scores, classes``.

        See :class:`export.graph.postprocess.Postprocess`.

        Args:
            *maps: Outputs of the lateral convolutions, ``Tensor[B, F, H / 2**l, W / 2**l]``, finest
                first, and P6, before its activation.
        """
        pyramid = levels_after(self.fpn, maps[:-1], maps[-1])
        detections: Outputs = self.postprocess(pyramid)
        return detections


def export_rest(
    detector: DetectorConfig,
    size: InputSize,
    path: Path,
    *,
    batch: int = 1,
    precision: FloatPrecision = "fp32",
    tail: Tail = "tensor-nms",
) -> Path:
    """Write :class:`RestOfDetector` with random weights, to measure its latency.

    How long tail ``onnx-nms`` takes depends on how many pairs of anchor and class score above the
    threshold: here one in every cell, about as many as of a detector that was trained briefly.

    Args:
        detector: Pyramid, heads and post-processing.
        size: Input of the whole detector.
        path: File to write.
        batch: Images per inference.
        precision: Of inputs, pyramid and heads; everything after them is fp32.
        tail: ``tensor-nms`` or ``onnx-nms``.

    Returns:
        ``path``.

    Raises:
        AdaptError: If the file cannot be written.
    """
    size = size.fixed()
    model = in_precision(_random_detector(detector), precision)
    dtype = torch.float16 if precision == "fp16" else torch.float32
    read = pyramid_sizes(size.height, size.width, detector.finest_level)[:-1]
    maps = {
        name: torch.zeros(batch, detector.fpn_width, *level, dtype=dtype)
        for name, level in zip(rest_inputs(detector.finest_level), read, strict=True)
    }
    description = header(
        "onnx-rest", detector=detector.to_dict(), input=size.to_dict(), precision=precision
    )
    rest = RestOfDetector(model, detector, size, tail)
    return write_onnx(rest, GraphSignature(maps, DETECTIONS), description, path)


def _random_detector(detector: DetectorConfig) -> RetinaNet:
    """Return a detector with random weights, always the same, none of which are zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_detector(Backbone(mobilenet_v2()), detector)
        for parameter in model.parameters():
            if not parameter.any():  # a new detector's biases: the exporter would leave them out
                nn.init.normal_(parameter, std=0.01)
        _fire_in_every_cell(model, lowest_logit(detector.score_threshold))
    return model


@torch.no_grad()
def _fire_in_every_cell(model: RetinaNet, lowest: float) -> None:
    """Let one class of one anchor score above the threshold in every cell, whatever it sees."""
    sure = max(FIRING, lowest + FIRING)
    if isinstance(model, FasterRCNN):  # every proposal; a softmax too
        scoring = model.roi_heads.box_predictor.cls_score
        _make_sure(scoring, 1, sure + math.log(scoring.out_features))
        return
    head = model.head.classification_head
    if isinstance(model.head, SeparableHead):  # a softmax, whose first class is the background
        for _, scoring in head.module_list:
            _make_sure(scoring, 1, sure + math.log(head.num_classes + 1))
    else:
        *_, scoring = head.cls_logits.modules()
        _make_sure(scoring, 0, sure)


def _make_sure(scoring: nn.Module, output: int, logit: float) -> None:
    scoring.get_parameter("weight").mul_(1e-3)
    scoring.get_parameter("bias")[output] = logit
