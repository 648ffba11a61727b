"""A `tensorrt` of committed signatures: what the real one does not have, or refuses, fails here.

Every class of `simulated_builder.py` and `simulated_engine.py` stands for the TensorRT class of its
name. A release has of it what `data/tensorrt_signatures.json` lists: another name, argument or type
of argument raises, as with the real bindings. The bodies check the order of calls that TensorRT's
documentation asks for, and shapes, streams and memory. Engines compute by ONNX Runtime on the CPU;
how long that takes on the simulated GPU follows from their convolutions.

It knows the rules that are written here, and nothing of kernels, speed, numbers or drivers.
`write_tensorrt_signatures.py` writes the signatures; :mod:`simulated_gpu` installs the module.
"""

import enum
import functools
import importlib.machinery
import inspect
import json
import operator
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import simulated_builder
import simulated_engine
import simulated_objects
from simulated_cuda import Cuda, Misuse
from simulated_objects import Object

SIGNATURES = Path(__file__).with_name("data") / "tensorrt_signatures.json"
VERSIONS = ("10.13.3.9", "10.16.0.72", "11.4.0.106", "rtx_1.7.1.116")
CLASSES = {
    cls.__name__: cls
    for module in (simulated_objects, simulated_builder, simulated_engine)
    for cls in vars(module).values()
    if inspect.isclass(cls) and issubclass(cls, Object) and cls is not Object
}
ENUMS = (
    *("BuilderFlag", "ComputeCapability", "DataType", "DeviceType", "EngineCapability"),
    *("LayerInformationFormat", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag"),
    *("PreviewFeature", "ProfilingVerbosity", "QuantizationFlag", "TacticSource", "TensorIOMode"),
)


class Enum(enum.Enum):
    """Converts to int by `int()` only, as an enumeration of the bindings."""

    def __int__(self) -> int:
        return int(self.value)


def tensorrt_module(release: str, cuda: Cuda, *, fused: bool = False) -> types.ModuleType:
    """Return the package of a release.

    Args:
        release: One of :data:`VERSIONS`.
        cuda: The GPU that engines run on.
        fused: Whether the inspector sees one node in the place of all layers.
    """
    listed = json.loads(SIGNATURES.read_text())[release]
    name = "tensorrt_rtx" if release.startswith("rtx") else "tensorrt"
    trt: Any = types.ModuleType(name)
    trt.__spec__ = importlib.machinery.ModuleSpec(name, None)
    trt.__version__ = release.removeprefix("rtx_")
    trt._release, trt._rtx, trt._cuda, trt._fused = release, name == "tensorrt_rtx", cuda, fused
    trt._always_strong = trt._rtx or int(trt.__version__.split(".")[0]) >= 11
    trt._logger = None

    def use(logger: Any) -> None:
        if not getattr(logger, "_ready", False):
            raise TypeError("the logger was not initialised: call ILogger.__init__")
        if trt._logger not in (None, logger):
            raise Misuse("a process has one logger; TensorRT ignores a second one")
        trt._logger = logger

    trt._use = use
    for enumeration, members in listed["enums"].items():
        values = {member: value for value, member in enumerate(members)}
        setattr(trt, enumeration, Enum(enumeration, values))
    for kind, members in listed["classes"].items():
        calls = {
            member: _checked(trt, kind, member, signature)
            for member, signature in members.items()
            if signature != "attr" and hasattr(CLASSES[kind], member)
        }
        setattr(
            trt, kind, type(kind, (CLASSES[kind],), {"_trt": trt, "_members": members, **calls})
        )
    severities = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    trt.ILogger.Severity = Enum("Severity", severities, start=0)
    for severity in trt.ILogger.Severity:
        setattr(trt.ILogger, severity.name, severity)
    return trt


def _checked(trt: Any, kind: str, member: str, signature: str) -> Callable[..., Any]:
    """Return a method that checks its arguments against the bindings' signature, and records."""
    work = getattr(CLASSES[kind], member)
    kinds = dict(re.findall(r"(\w+): ([\w.]+)", signature))
    defaults = set(re.findall(r"(\w+): [\w.]+ = ", signature))
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if name in defaults else inspect.Parameter.empty,
        )
        for name in kinds
    ]
    expected = None if signature == "overloaded" else inspect.Signature(parameters)

    @functools.wraps(work)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if expected is not None:
            for name, value in expected.bind(*args, **kwargs).arguments.items():
                if not _is(trt, value, kinds[name]):
                    raise TypeError(f"{kind}.{member}: {name} is {value!r}, not {kinds[name]}")
        if member != "log":
            trt._cuda.record(f"{kind}.{member}")
        return work(self, *args, **kwargs)

    return call


def _is(trt: Any, value: Any, kind: str) -> bool:
    if kind == "int":
        return isinstance(value, int) or hasattr(value, "__index__")
    if kind == "Buffer":
        return isinstance(value, bytes | bytearray | memoryview)
    simple = {"bool": bool, "str": str}
    if kind in simple:
        return isinstance(value, simple[kind])
    if kind == "Dims":
        return isinstance(value, trt.Dims | tuple | list)
    return isinstance(value, operator.attrgetter(kind)(trt))
