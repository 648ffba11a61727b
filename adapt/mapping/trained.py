"""How does a detector start from a trained one that has another backbone, heads or classes?"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import RetinaNet

from adapt.detector.config import RATIOS
from adapt.detector.faster_rcnn import FasterRCNN, Stages
from adapt.detector.retinanet import scale_octaves
from adapt.detector.separable import POINTWISE, is_separable
from adapt.detector.ssdlite import SeparableHead
from adapt.mapping.pretrained import Mapper

# The output layer of RetinaNet and FCOS, dense or separable, of a level of SSDLite, or of a stage.
CLASSIFICATION = re.compile(
    rf"head\.classification_head\.(cls_logits(\.{POINTWISE})?|module_list\.\d+\.1)"
    r"|roi_heads\.box_predictor\.cls_score"
)
REGRESSION = re.compile(
    rf"head\.regression_head\.(bbox_reg(\.{POINTWISE})?|module_list\.\d+\.1)"
    r"|rpn\.head\.bbox_pred"
)
OBJECTNESS, CLASS_BOXES = "rpn.head.cls_logits", "roi_heads.box_predictor.bbox_pred"
READS_POOLED = "roi_heads.box_head.fc6.weight"
HEADS = ("head.", "rpn.", "roi_heads.")
SMOOTH_AND_HEADS = (*HEADS, "backbone.fpn.layer_blocks.")
LEVEL = re.compile(
    r"(backbone\.fpn\.(?:inner|layer)_blocks\.|head\.\w+\.(?:module_list|towers)\.)(\d+)(\..*)"
)
Pairs = Sequence[tuple[int, int]]  # places in the target and in the source


def map_pyramid_and_heads(
    source: RetinaNet, target: RetinaNet, mapper: Mapper, classes: Pairs | None = None
) -> None:
    """Copy everything but the backbone, in place.

    Lateral convolutions and P6 read as many first channels of the taps as both have; those that
    only the target has are surplus. So are channels of a wider pyramid. Heads copy their first
    convolutions; those that only the target has start as in a new detector. Of other anchors per
    cell, each starts as the one of its shape whose scale is nearest. Between kinds of heads output
    layers are not copied: they say other things. Levels of the pyramid that only the target has are
    new; so are all 3x3 convolutions if only one detector's are separable. What reads the pooled
    features of boxes is resized to their cells.

    Args:
        source: Trained detector.
        target: The detector.
        mapper: Copies, and keeps the account.
        classes: Places of the classes that both have, in the target and in the source; all others
            start as in a new detector. The same in the same order if None.
    """
    trained = source.state_dict()
    same_layers = is_separable(source) == is_separable(target)
    same_kind = type(source.head) is type(target.head)
    shift = target.backbone.unread - source.backbone.unread
    norms = {n: m for n, m in target.named_modules() if isinstance(m, nn.BatchNorm2d)}
    outputs = _Outputs(source, target, classes)
    for name, tensor in target.state_dict().items():
        if name.startswith("backbone.body."):
            continue
        same, (layer, _, field) = _of_same_level(name, shift), name.rpartition(".")
        new = name.startswith(HEADS) and ".conv." not in name and not same_kind
        new |= name.startswith(SMOOTH_AND_HEADS) and not same_layers
        if new or same not in trained:
            mapper.report.copied[name] = (0, tensor.numel())
        elif layer in norms:
            if field == "weight":  # with which the rest of it goes
                before = source.get_submodule(_of_same_level(layer, shift))
                assert isinstance(before, nn.BatchNorm2d)
                mapper.norm(layer, before, norms[layer])
        elif name == READS_POOLED and isinstance(source, FasterRCNN):
            mapper.copy(name, _resized(trained[same], source, target), tensor)
        elif which := outputs.of(layer):
            _copy_outputs(name, trained[same], tensor, mapper, *which)
        else:
            mapper.copy(name, trained[same], tensor)


class _Outputs:
    """What the channels of output layers say, in the target and in the source.

    Args:
        source: Trained detector.
        target: The detector.
        classes: As of :func:`map_pyramid_and_heads`.
    """

    def __init__(self, source: RetinaNet, target: RetinaNet, classes: Pairs | None) -> None:
        number, before = (_classes_of(one) for one in (target, source))
        pairs = [(place, place) for place in range(number)] if classes is None else classes
        # The first one is the background.
        if isinstance(target.head, SeparableHead | Stages):
            number, before = number + 1, before + 1
            pairs = [(0, 0), *((place + 1, known + 1) for place, known in pairs)]
        self._classes = number, before, pairs

    def of(self, layer: str) -> tuple[int, int, Pairs] | None:
        """Return outputs per anchor in target and source, and which are the same; None if none."""
        if CLASSIFICATION.fullmatch(layer):
            return self._classes
        if layer == OBJECTNESS:
            return 1, 1, [(0, 0)]
        if layer == CLASS_BOXES:
            number, before, pairs = self._classes
            sides = [(4 * new + side, 4 * old + side) for new, old in pairs for side in range(4)]
            return 4 * number, 4 * before, sides
        return (4, 4, [(side, side) for side in range(4)]) if REGRESSION.fullmatch(layer) else None


def _classes_of(model: RetinaNet | FasterRCNN) -> int:
    """Return the number of object classes."""
    if isinstance(model, FasterRCNN):
        return int(model.roi_heads.box_predictor.cls_score.out_features) - 1
    return int(model.head.classification_head.num_classes)


def _of_same_level(name: str, shift: int) -> str:
    """Return the name in a pyramid whose first level is ``shift`` levels finer."""
    match = LEVEL.match(name)
    return f"{match[1]}{int(match[2]) + shift}{match[3]}" if match else name


def _resized(weight: Tensor, source: FasterRCNN, target: FasterRCNN) -> Tensor:
    """Return weights of pooled features, channels x cells, that give about the same of other cells.

    As many cells of a smooth map share the weight of one: bilinear, the sum over cells kept.
    """
    sides = [model.roi_heads.box_roi_pool.output_size for model in (source, target)]
    if sides[0] == sides[1]:
        return weight
    before = weight.view(len(weight), -1, *sides[0])
    after: Tensor = F.interpolate(before, sides[1], mode="bilinear", antialias=True)
    cells = [height * width for height, width in sides]
    kept: Tensor = after.flatten(1) * (cells[0] / cells[1])
    return kept


def _copy_outputs(
    name: str, trained: Tensor, target: Tensor, mapper: Mapper, new: int, old: int, pairs: Pairs
) -> None:
    """Copy an output layer, whose channels are shapes x scales x ``new`` (``old``) outputs."""
    initial = target.clone()
    anchors = [len(tensor) // of for tensor, of in ((target, new), (trained, old))]
    shapes = 1 if anchors == [1, 1] else len(RATIOS)  # FCOS has one square per cell
    ours, theirs = (scale_octaves(number // shapes) for number in anchors)
    nearest = [min(range(len(theirs)), key=lambda n: abs(theirs[n] - one)) for one in ours]
    before = trained.view(shapes, len(theirs), old, *trained.shape[1:])[:, nearest]
    # Outputs that the source does not have are filled with anything, and initialised again below.
    places = torch.zeros(new, dtype=torch.int64)
    known = torch.zeros(new, dtype=torch.bool)
    for to, out_of in pairs:
        places[to], known[to] = out_of, True
    mapper.copy(name, before[:, :, places].flatten(0, 2), target)
    fresh = ~known.repeat(shapes * len(ours))
    with torch.no_grad():
        target[fresh] = initial[fresh]
    copied, elements = mapper.report.copied[name]
    mapper.report.copied[name] = (int(copied * float(known.float().mean())), elements)
