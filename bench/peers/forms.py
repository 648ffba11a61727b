"""Which detections do another tool's outputs hold? (YOLO's, DETR's, after NMS, torchvision's)"""

# N images, A boxes of a grid, Q queries, K detections after NMS, C classes

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from adapt.errors import AdaptError
from bench.peers.settings import Form, Settings
from export.graph.ranking import best_pairs
from export.run.inference import Array, ImageDetections

MOST_ROWS = 1000  # that a file with NMS gives, or queries of a DETR; a grid has more


def relevant_outputs(outputs: Mapping[str, Array], form: Form | None) -> tuple[str, ...]:
    """Return the names of the outputs that hold detections.

    One, or boxes and logits of a DETR, or boxes, scores and labels of torchvision. Others, such as
    YOLOv5's raw heads or masks, have other numbers of axes.

    Args:
        outputs: All outputs of a call by name.
        form: Their form, if it is known.
    """
    if form in (None, "torchvision"):
        lists = _torchvision_outputs(outputs)
        if lists:
            return lists
    tables = {name: table.shape for name, table in outputs.items() if table.ndim == 3}
    boxes = _named_first([name for name, shape in tables.items() if shape[2] == 4])
    if boxes and form in (None, "detr"):
        logits = [n for n in tables if n != boxes[0] and tables[n][:2] == tables[boxes[0]][:2]]
        return (boxes[0], *logits[:1])
    return tuple(tables)[:1]


def _named_first(names: Sequence[str]) -> list[str]:
    """Return outputs of four columns with those first that are called boxes.

    Logits of four classes have four columns too: RF-DETR gives ``dets`` and ``labels``,
    Transformers ``logits`` and ``pred_boxes``.
    """
    return sorted(names, key=lambda name: not ("box" in name.lower() or "det" in name.lower()))


def _torchvision_outputs(outputs: Mapping[str, Array]) -> tuple[str, ...]:
    """Return boxes, scores and labels, which torchvision's detectors have in several orders."""
    boxes = [name for name, of in outputs.items() if of.ndim == 2 and of.shape[1] == 4]
    if len(boxes) != 1:
        return ()
    columns = {n: of for n, of in outputs.items() if of.shape == outputs[boxes[0]].shape[:1]}
    labels = [name for name, of in columns.items() if np.issubdtype(of.dtype, np.integer)]
    scores = [name for name in columns if name not in labels]
    return (*boxes, *scores, *labels) if len(scores) == len(labels) == 1 else ()


def recognised(shapes: Sequence[tuple[int, ...]], classes: int | None) -> Form | None:
    """Return the form of outputs by their shapes; None if they fit none, or several.

    Args:
        shapes: Of the relevant outputs.
        classes: How many classes the file names, if it does.
    """
    match [shape[1:] for shape in shapes]:
        case [(4,), (), ()]:
            return "torchvision"
        case [(queries, 4), (_, _)] if queries <= MOST_ROWS:
            return "detr"
        case [(rows, 6)] if rows <= MOST_ROWS:
            return "nms"
        case [(rows, columns)] if classes is not None:
            return "yolo" if rows == 4 + classes else _if(columns == 5 + classes)
        case [(rows, columns)] if rows != columns:
            return "yolo" if rows < columns else _if(columns > 5)
    return None


def _if(objectness: bool) -> Form | None:
    return "yolo-objectness" if objectness else None


def class_count(form: Form, shapes: Sequence[tuple[int, ...]], settings: Settings) -> int | None:
    """Return how many classes outputs give scores of; None after NMS, when nothing tells.

    Raises:
        AdaptError: If outputs of these shapes do not have the form.
    """
    dimensions = [shape[1:] for shape in shapes]
    match form, dimensions:
        case "yolo", [(rows, _)] if rows > 4:
            return rows - 4
        case "yolo-objectness", [(_, columns)] if columns > 5:
            return columns - 5
        case "detr", [(_, 4), (_, columns)]:
            return columns - (settings.activation == "softmax")
        case ("nms", [(_, 6)]) | ("torchvision", [(4,), (), ()]):
            return None
    raise AdaptError(f"outputs of the shapes {list(shapes)} do not have the form {form!r}")


def detections_of(
    outputs: Sequence[Array], settings: Settings, size: tuple[int, int]
) -> list[ImageDetections]:
    """Return what outputs hold, in pixels of the input.

    Args:
        outputs: The relevant ones, of the form that ``settings`` name.
        settings: Form, thresholds and numbers.
        size: Height and width of the input in pixels.
    """
    tensors = [torch.from_numpy(np.asarray(output, np.float32)) for output in outputs]
    match settings.form:
        case "nms":
            return [_listed(rows, settings) for rows in tensors[0]]
        case "torchvision":
            boxes, scores, labels = tensors
            return [_listed(torch.cat([boxes, scores[:, None], labels[:, None]], 1), settings)]
        case "detr":
            height, width = size
            boxes = tensors[0] * torch.tensor([width, height, width, height])
            return _best(boxes, _wanted(_scores(tensors[1], settings), settings), settings)
        case "yolo":
            table = tensors[0].transpose(1, 2)
            return _suppressed(table[..., :4], _wanted(table[..., 4:], settings), settings)
        case _:
            (table,) = tensors
            scores = _wanted(table[..., 4:5] * table[..., 5:], settings)
            return _suppressed(table[..., :4], scores, settings)


def _wanted(scores: Tensor, settings: Settings) -> Tensor:
    """Return scores ``Tensor[N, A, C]`` with those of classes of no use below every threshold.

    They would take the places of others: RF-DETR's last column, for one, is no object.
    """
    unused = torch.tensor(settings.unused, dtype=torch.long)
    return scores.index_fill(-1, unused, -1.0) if len(unused) else scores


def _listed(rows: Tensor, settings: Settings) -> ImageDetections:
    """Return the rows ``Tensor[K, 6]`` of an image that are no filling, and of classes of use."""
    rows = rows[rows[:, 4] > settings.score_threshold]
    unused = torch.tensor(settings.unused, dtype=rows.dtype)
    rows = rows[~torch.isin(rows[:, 5], unused)]
    best = rows[rows[:, 4].argsort(descending=True, stable=True)][: settings.detections]
    return _as_arrays(best[:, :4], best[:, 4], best[:, 5].long())


def _scores(logits: Tensor, settings: Settings) -> Tensor:
    match settings.activation:
        case "sigmoid":
            return logits.sigmoid()
        case "softmax":
            return logits.softmax(-1)[..., :-1]
        case "none":
            return logits


def _best(middles: Tensor, scores: Tensor, settings: Settings) -> list[ImageDetections]:
    """Return the best pairs of a query and a class: DETRs suppress nothing."""
    values, queries, labels = best_pairs(scores, settings.detections)
    found = []
    for value, query, label, boxes in zip(values, queries, labels, middles, strict=True):
        alive = value > settings.score_threshold
        corners = box_convert(boxes[query[alive]], "cxcywh", "xyxy")
        found.append(_as_arrays(corners, value[alive], label[alive]))
    return found


def _suppressed(middles: Tensor, scores: Tensor, settings: Settings) -> list[ImageDetections]:
    """Return what greedy suppression within each class leaves of the best pairs."""
    values, places, labels = best_pairs(scores, settings.candidates)
    found = []
    for value, place, label, boxes in zip(values, places, labels, middles, strict=True):
        alive = value > settings.score_threshold
        value, label = value[alive], label[alive]
        corners = box_convert(boxes[place[alive]], "cxcywh", "xyxy")
        kept = batched_nms(corners, value, label, settings.nms_threshold)[: settings.detections]
        found.append(_as_arrays(corners[kept], value[kept], label[kept]))
    return found


def _as_arrays(boxes: Tensor, scores: Tensor, labels: Tensor) -> ImageDetections:
    return ImageDetections(boxes.numpy(), scores.numpy(), labels.numpy())
