"""ONNX files as other tools write them, whose answers are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE = (64, 64)  # of their input, height and width
NAMES = "{0: 'circle', 1: 'square', 2: 'star'}"  # as Ultralytics writes them


def peer(
    path: Path,
    outputs: Mapping[str, np.ndarray],
    *,
    shape: Sequence[int | str] = (1, 3, *SIZE),
    kind: int = TensorProto.FLOAT,
    more_inputs: Sequence[str] = (),
    **notes: str,
) -> Path:
    """Write a file that answers every image with the same outputs; integers stay integers."""
    images = helper.make_tensor_value_info("images", kind, shape)
    others = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 2)) for n in more_inputs]
    zero = numpy_helper.from_array(np.zeros((), np.float32), "zero")
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["pixels"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "zero"], ["nothing"]),
    ]
    kinds = {n: _kind(v) for n, v in outputs.items()}
    for name, of in kinds.items():
        added = f"{name} nothing"
        nodes.append(helper.make_node("Cast", ["nothing"], [added], to=of))
        nodes.append(helper.make_node("Add", [f"{name} answer", added], [name]))
    graph = helper.make_graph(
        nodes,
        "peer",
        [images, *others],
        [helper.make_tensor_value_info(n, of, None) for n, of in kinds.items()],
        [zero, *(_answer(f"{n} answer", v) for n, v in outputs.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, notes)
    path.write_bytes(model.SerializeToString())
    return path


def _kind(values: np.ndarray) -> int:
    integer = np.issubdtype(np.asarray(values).dtype, np.integer)
    return TensorProto.INT64 if integer else TensorProto.FLOAT


def _answer(name: str, values: np.ndarray) -> onnx.TensorProto:
    dtype = np.int64 if _kind(values) == TensorProto.INT64 else np.float32
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def middles(corners: np.ndarray) -> np.ndarray:
    """Corners as middles and sizes."""
    low, high = corners[..., :2], corners[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)


def one_hot(scores: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    return scores[:, None] * np.eye(classes)[labels]


def outputs_of(
    form: str, corners: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: int = 3
) -> dict[str, np.ndarray]:
    """Boxes in pixels of the input as a file of this form gives them, among many that are none."""
    of_class = one_hot(scores, labels, classes)
    table = np.concatenate([middles(corners), of_class], 1)
    match form:
        case "yolo":
            return {"output0": _filled(table, 2000).T[None]}
        case "yolo-objectness":
            halves = np.concatenate([middles(corners), np.full((len(scores), 1), 0.5)], 1)
            return {"output0": _filled(np.concatenate([halves, 2 * of_class], 1), 2000)[None]}
        case "detr":
            shares = middles(corners) / np.array([*SIZE[::-1], *SIZE[::-1]])
            logits = np.log(np.clip(of_class, 1e-9, 1 - 1e-9) / (1 - np.clip(of_class, 1e-9, 0.9)))
            return {"dets": _filled(shares, 300)[None], "labels": _filled(logits, 300, -20.0)[None]}
        case "torchvision":  # which lists its labels before or after the scores
            return {"boxes": corners, "labels": labels, "scores": scores}
        case _:
            rows = np.concatenate([corners, scores[:, None], labels[:, None]], 1)
            return {"output0": _filled(rows, 300)[None]}


def _filled(rows: np.ndarray, number: int, value: float = 0.0) -> np.ndarray:
    return np.concatenate([rows, np.full((number - len(rows), rows.shape[1]), value)])


# RetinaNet's decoding, whose boxes are clipped to the input before they are compared.
DECODED = """
<ir_version: {ir}, opset_import: ["": {opset}]>
decoded (float[N, A, K] logits, float[N, A, 4] deltas) => (float[N, D, A] output0)
<float[A, 2] middles, float[A, 2] sizes, float[2] edges, float limit, float half, float zero>
{{
    moved, grown = Split <axis = 2, num_outputs = 2> (deltas)
    offset = Mul (moved, sizes)
    middle = Add (offset, middles)
    limited = Min (grown, limit)
    factor = Exp (limited)
    size = Mul (factor, sizes)
    reach = Mul (size, half)
    low = Sub (middle, reach)
    high = Add (middle, reach)
    low_above = Max (low, zero)
    low_inside = Min (low_above, edges)
    high_above = Max (high, zero)
    high_inside = Min (high_above, edges)
    both = Add (low_inside, high_inside)
    new_middle = Mul (both, half)
    new_size = Sub (high_inside, low_inside)
    scores = Sigmoid (logits)
    table = Concat <axis = 2> (new_middle, new_size, scores)
    output0 = Transpose <perm = [0, 2, 1]> (table)
}}
"""


def as_yolo(raw: Path, anchors: np.ndarray, size: tuple[int, int], path: Path) -> Path:
    """Write our detector that ends in raw heads as a file of YOLO's form."""
    ours = onnx.load(raw)
    (opset,) = [of.version for of in ours.opset_import if not of.domain]
    end = onnx.parser.parse_model(DECODED.format(ir=ours.ir_version, opset=opset))
    places = middles(anchors)
    known = {
        "middles": places[:, :2],
        "sizes": places[:, 2:],
        "edges": np.array(size[::-1]),
        "limit": np.log(1000 / 16),
        "half": 0.5,
        "zero": 0.0,
    }
    del end.graph.initializer[:]
    end.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, np.float32), name)
        for name, value in known.items()
    )
    heads = [("cls_logits", "logits"), ("bbox_regression", "deltas")]
    merged = onnx.compose.merge_models(ours, end, io_map=heads)
    del merged.metadata_props[:]
    helper.set_model_props(merged, {"names": NAMES, "task": "detect"})
    path.write_bytes(merged.SerializeToString())
    return path


def as_rows(ours: Path, path: Path) -> Path:
    """Write our detector that ends in detections as a file with NMS inside, ``[N, K, 6]``."""
    model = onnx.load(ours)
    del model.metadata_props[:]
    last = numpy_helper.from_array(np.array([2]), "last axis")
    model.graph.initializer.append(last)
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["classes"], ["class numbers"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["class numbers", "last axis"], ["class column"]),
            helper.make_node("Unsqueeze", ["scores", "last axis"], ["score column"]),
            helper.make_node("Concat", ["boxes", "score column", "class column"], ["rows"], axis=2),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
    path.write_bytes(model.SerializeToString())
    return path
