"""What do all classes of a simulated TensorRT share, and which are of no side of it?"""

from collections.abc import Iterator
from typing import Any

import onnx

TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "uint8": "UINT8",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
DATA_DEPENDENT = {"NonMaxSuppression", "NonZero"}  # operators that decide the sizes of outputs


class Object:
    """What the classes of the bindings share: they have the members that are listed, no others."""

    _trt: Any
    _members: dict[str, str]

    def __getattribute__(self, name: str) -> Any:
        kind = type(self)
        derived = "_members" not in vars(kind)  # in Python: has members of its own
        if not derived and not name.startswith("_") and name not in kind._members:
            raise AttributeError(f"{type(self).__name__} of {self._trt._release} has no {name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        hidden = "_members" in vars(type(self)) and not name.startswith("_")
        if hidden and self._members.get(name) != "attr":
            raise AttributeError(f"{type(self).__name__} of {self._trt._release} sets no {name}")
        object.__setattr__(self, name, value)

    def _make(self, kind: str, **state: Any) -> Any:
        """Return an object as TensorRT's factories do: its class has no constructor."""
        cls = getattr(self._trt, kind)
        made = cls.__new__(cls)
        for name, value in state.items():
            object.__setattr__(made, name, value)
        return made

    def _host_memory(self, content: bytes) -> Any:
        made = self._make("IHostMemory")
        bytearray.extend(made, content)
        return made

    def _refuse(self, reason: str) -> None:
        """Tell the logger why a call returns False or None."""
        self._trt._logger.log(self._trt.ILogger.ERROR, reason)


class ILogger(Object):
    INTERNAL_ERROR = ERROR = WARNING = INFO = VERBOSE = None  # every module has its own

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None: ...


class Dims(Object):
    def __init__(self, shape: Any = ()) -> None:
        self._shape = tuple(map(int, shape))

    def __len__(self) -> int:
        return len(self._shape)

    def __iter__(self) -> Iterator[int]:
        return iter(self._shape)

    def __getitem__(self, index: Any) -> Any:
        return self._shape[index]

    def __eq__(self, other: object) -> bool:
        return self._shape == tuple(other)  # type: ignore[call-overload]

    __hash__ = None  # type: ignore[assignment]


class IHostMemory(Object, bytearray):
    @property
    def nbytes(self) -> int:
        return len(self)

    def __enter__(self) -> "IHostMemory":
        return self

    def __exit__(self, *_: object) -> None: ...


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
