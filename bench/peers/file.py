"""What does another tool's ONNX file say of itself? (input, class names, precision, parameters)"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from adapt.errors import AdaptError
from adapt.runtime import Precision
from export.graph.onnx_file import load_onnx

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
INT8 = {"DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"}


@dataclass(frozen=True)
class PeerFile:
    """What the ONNX file of another tool says of itself.

    Attributes:
        path: The file.
        model: Its content.
        names: Class names in its metadata, as Ultralytics writes them.
        size: Height and width of its input; None if it takes any.
        batched: Whether its input has an axis for the images of a batch.
    """

    path: Path
    model: onnx.ModelProto
    names: tuple[str, ...] | None
    size: tuple[int, int] | None
    batched: bool = True

    @classmethod
    def read(cls, path: Path) -> "PeerFile":
        """Read a file.

        Raises:
            AdaptError: If it is damaged, made for another task, or takes anything but images.
        """
        model = load_onnx(path)
        notes = {prop.key: prop.value for prop in model.metadata_props}
        if notes.get("task", "detect") != "detect":
            raise AdaptError(f"{path} is for the task {notes['task']!r}; export a detector")
        shape = _input_shape(path, model)
        height, width = shape[-2:]
        size = (height, width) if height and width else _pair(notes.get("imgsz", ""))
        return cls(path, model, _names(notes), size, batched=len(shape) == 4)

    @property
    def parameters(self) -> int:
        """Numbers in its weights and biases, as far as they stand in the graph as such."""
        return sum(
            int(np.prod(tensor.dims, dtype=np.int64))
            for tensor in self.model.graph.initializer
            if tensor.data_type in (*FLOATS, onnx.TensorProto.INT8) and tensor.dims
        )

    @property
    def precision(self) -> Precision:
        """In which it computes."""
        operators = {node.op_type for node in self.model.graph.node}
        if operators & INT8:
            return "int8"
        types = {
            tensor.data_type for tensor in self.model.graph.initializer if len(tensor.dims) > 1
        }
        return "fp16" if onnx.TensorProto.FLOAT16 in types else "fp32"


def _names(notes: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the class names that Ultralytics writes: a Python dict or list as text."""
    try:
        names = ast.literal_eval(notes.get("names", ""))
    except (SyntaxError, ValueError):
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    return tuple(map(str, names)) if isinstance(names, list | tuple) and names else None


def _input_shape(path: Path, model: onnx.ModelProto) -> tuple[int, ...]:
    """Return the shape of the input, 0 where it takes any.

    Raises:
        AdaptError: If the file takes anything but images ``[N, 3, H, W]``, or one ``[3, H, W]``.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    shapes = [[axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in inputs]
    types = [value.type.tensor_type.elem_type for value in inputs]
    if len(inputs) != 1 or len(shapes[0]) not in (3, 4) or shapes[0][-3] not in (0, 3):
        listed = ", ".join(f"{v.name} {s}" for v, s in zip(inputs, shapes, strict=True))
        raise AdaptError(
            f"{path} takes {listed} (0: any) instead of images [N, 3, H, W] alone; export it with "
            "that one input"
        )
    if types[0] not in (*FLOATS, onnx.TensorProto.UINT8):
        name = onnx.TensorProto.DataType.Name(types[0])
        raise AdaptError(f"{path} takes pixels of type {name}; export it with float32 or uint8")
    return tuple(shapes[0])


def _pair(text: str) -> tuple[int, int] | None:
    try:
        height, width = ast.literal_eval(text)
        return int(height), int(width)
    except (SyntaxError, TypeError, ValueError):
        return None
