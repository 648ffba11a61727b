"""Which order, shapes, streams and memory does a simulated TensorRT ask for when an engine runs?"""

import functools
import json
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, shape_inference
from simulated_cuda import Memory, Misuse
from simulated_objects import DATA_DEPENDENT, TYPES, Object, shape_of


class Runtime(Object):
    def __init__(self, logger: Any) -> None:
        self._trt._use(logger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        head, _, model = bytes(serialized_engine).partition(b"\n")
        try:
            header = json.loads(head)
        except ValueError:
            return self._refuse("Serialization assertion failed: stdArchiveReader")
        if header["release"] != self._trt._release:
            return self._refuse(f"the engine plan is of version {header['release']}")
        return self._make("ICudaEngine", _header=header, _model=onnx.load_from_string(model))


class ICudaEngine(Object):
    _header: dict[str, Any]
    _model: onnx.ModelProto

    @property
    def _ios(self) -> dict[str, onnx.ValueInfoProto]:
        return {v.name: v for v in (*self._model.graph.input, *self._model.graph.output)}

    @property
    def _inputs(self) -> list[str]:
        return [value.name for value in self._model.graph.input]

    @property
    def num_io_tensors(self) -> int:
        return len(self._ios)

    def get_tensor_name(self, index: int) -> str:
        return list(self._ios)[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._trt.TensorIOMode
        return mode.INPUT if name in self._inputs else mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._trt.DataType[TYPES[self._numpy(name).name]]

    def get_tensor_shape(self, name: str) -> Any:
        return self._trt.Dims(shape_of(self._ios[name]))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        if name not in self._inputs or profile_index:
            raise Misuse(f"{name} has no profile {profile_index}")
        shape = shape_of(self._ios[name])
        return [self._trt.Dims(s) for s in self._header["profile"].get(name, [shape] * 3)]

    def create_execution_context(self) -> Any:
        state = {"_shapes": {}, "_addresses": {}, "_ran": False}
        context = self._make("IExecutionContext", _engine=self, **state)
        for name in self._inputs:
            if -1 not in shape_of(self._ios[name]):
                context._shapes[name] = shape_of(self._ios[name])
        return context

    def create_engine_inspector(self) -> Any:
        return self._make("EngineInspector", _engine=self)

    def _numpy(self, name: str) -> np.dtype[Any]:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self._ios[name].type.tensor_type.elem_type))

    @functools.cached_property
    def _session(self) -> Any:
        from export.run.onnx_session import ort_session  # which knows the faults of ONNX Runtime

        return ort_session("ort-cpu", self._model.SerializeToString(), threads=1)


class EngineInspector(Object):
    _engine: Any

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        if format.name != "JSON":
            return "plain text"
        graph = shape_inference.infer_shapes(self._engine._model).graph
        values = [*graph.input, *graph.output, *graph.value_info]
        codes = {v.name: v.type.tensor_type.elem_type for v in values}
        codes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        ios = [value.name for value in graph.input], [value.name for value in graph.output]
        layers = [(n.name, n.input, n.output) for n in graph.node if n.op_type != "Constant"]
        if self._trt._fused:  # all of a network may become one node, which tells of its ends only
            layers = [("{ForeignNode[all]}", *ios)]
        if not self._engine._header["detailed"]:
            return json.dumps({"Layers": [name for name, _, _ in layers]})
        field = "DataType" if self._trt._release.startswith("11") else "Format/Datatype"

        def told(names: Any) -> list[dict[str, str]]:
            kinds = {name: helper.tensor_dtype_to_np_dtype(codes[name]) for name in names if name}
            return [{"Name": n, field: TYPES[np.dtype(k).name].title()} for n, k in kinds.items()]

        return json.dumps(
            {"Layers": [{"Name": n, "Inputs": told(i), "Outputs": told(o)} for n, i, o in layers]}
        )


class IExecutionContext(Object):
    _engine: Any
    _shapes: dict[str, tuple[int, ...]]
    _addresses: dict[str, int]
    _ran: bool  # since the shapes changed

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        shape = tuple(shape)
        fits = len(shape) == len(most)
        if not fits or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            self._refuse(f"{name}: {shape} does not lie within the profile")
            return False
        self._shapes[name], self._ran = shape, False
        return True

    def get_tensor_shape(self, name: str) -> Any:
        declared = shape_of(self._engine._ios[name])
        if name in self._shapes:
            return self._trt.Dims(self._shapes[name])
        if self._missing_shapes():
            return self._trt.Dims(declared)
        batch = next(iter(self._shapes.values()))[0]
        return self._trt.Dims([batch if size == -1 else size for size in declared])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._ios:
            self._refuse(f"{name} is no tensor of the engine")
            return False
        self._trt._cuda.at(memory, name)
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._capture_problem() is None

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, engine = self._trt._cuda, self._engine
        if stream_handle == 0:
            raise Misuse("on the default stream TensorRT synchronises the device")
        if self._missing_shapes():
            raise Misuse(f"no shape was set of {self._missing_shapes()}")
        missing = [name for name in engine._ios if name not in self._addresses]
        if missing:
            raise Misuse(f"no address was set of {missing}")
        if cuda.capturing is not None and (problem := self._capture_problem()):
            cuda.capturing.valid = False
            self._refuse(problem)
            return False
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in engine._ios}
        cuda.enqueue(
            stream_handle,
            self._addresses.values(),
            functools.partial(self._run, shapes, dict(self._addresses)),
        )
        self._ran = True
        return True

    def _missing_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def _capture_problem(self) -> str | None:
        """Return why a run cannot be captured."""
        header = self._engine._header
        if not self._trt._cuda.capturable:
            return "operation not permitted when stream is capturing"
        if not self._ran:
            return "memory is allocated on the first run after a change of shapes"
        if any(node.op_type in DATA_DEPENDENT for node in self._engine._model.graph.node):
            return "shapes that depend on the data wait for the GPU"
        if self._trt._rtx and "REQUIRE_USER_ALLOCATION" not in header["flags"]:
            return "the engine allocates memory while it runs"
        return None

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        """Use the memory now, as a graph does, which knows addresses only; compute later."""
        cuda, engine = self._trt._cuda, self._engine
        cuda.now_ms += engine._header["ms"] * cuda.slowdown
        memory = {}
        for name, shape in shapes.items():
            nbytes = int(np.prod(shape)) * engine._numpy(name).itemsize
            memory[name] = cuda.at(addresses[name], name, nbytes)
        key = tuple(addresses.values()).__hash__()
        cuda.uncomputed[key] = functools.partial(_compute, engine, memory, shapes)


def _compute(engine: Any, memory: dict[str, Memory], shapes: dict[str, tuple[int, ...]]) -> None:
    inputs = {name: memory[name].data.reshape(shapes[name]).numpy() for name in engine._inputs}
    names = [name for name in engine._ios if name not in inputs]
    for name, found in zip(names, engine._session.run(names, inputs), strict=True):
        memory[name].data.reshape(-1)[: found.size] = torch.from_numpy(found).reshape(-1)
