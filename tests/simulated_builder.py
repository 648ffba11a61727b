"""Which order, shapes and flags does a simulated TensorRT ask for when an engine is built?"""

import json
from typing import Any

import numpy as np
import onnx
from onnx import helper, shape_inference
from simulated_cuda import Misuse
from simulated_objects import DATA_DEPENDENT, TYPES, Object, shape_of

LAUNCH_MS, MADDS_PER_MS = 0.002, 2e8  # what a convolution takes


class Builder(Object):
    def __init__(self, logger: Any) -> None:
        self._trt._use(logger)

    def create_network(self, flags: int = 0) -> Any:
        strongly = self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        if not self._trt._always_strong and not flags >> int(strongly) & 1:
            raise Misuse("a weakly typed network does not compute in the precision of its file")
        return self._make("INetworkDefinition", _model=None, _builder=self)

    def create_builder_config(self) -> Any:
        state = {"_profiles": [], "_pools": {}, "_cache": None, "_capabilities": {}}
        return self._make("IBuilderConfig", _flags={self._trt.BuilderFlag.TF32}, **state)

    def create_optimization_profile(self) -> Any:
        return self._make("IOptimizationProfile", _shapes={})

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        model, trt = network._model, self._trt
        if model is None:
            raise Misuse("the network is empty: parse a model before")
        if trt.BuilderFlag.TF32 in config._flags:
            raise Misuse("fp32 would be computed in TF32")
        if config._cache is None and not trt._rtx:
            raise Misuse("without a timing cache, equal layers may get unequal tactics")
        profile = next(iter(config._profiles), None)
        for tensor in network._inputs:
            if -1 in tuple(tensor.shape) and tensor.name not in getattr(profile, "_shapes", {}):
                raise Misuse(f"{tensor.name} has a free size and no profile")
        if trt._rtx and any(node.op_type in DATA_DEPENDENT for node in model.graph.node):
            return self._refuse("no runners that implement it")
        if config._cache is not None:
            config._cache._entries |= {_layer_key(network, n) for n in _convolutions(model)}
        shapes = {} if profile is None else profile._shapes
        header = {
            "release": trt._release,
            "profile": {name: [list(shape) for shape in three] for name, three in shapes.items()},
            "flags": [flag.name for flag in config._flags],
            "detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
            "ms": _run_ms(network),
        }
        return self._host_memory(_plan(header, model))


class INetworkDefinition(Object):
    _model: onnx.ModelProto
    _dtypes: dict[str, Any]
    _shapes: dict[str, tuple[int, ...]]
    _inputs: list[Any]
    _outputs: list[Any]

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> Any:
        return self._outputs[index]

    def get_layer(self, index: int) -> Any:
        return self._make("ILayer", _node=self._model.graph.node[index], _network=self)

    def get_flag(self, flag: Any) -> bool:
        return flag.name == "STRONGLY_TYPED"

    def __len__(self) -> int:
        return self.num_layers

    def __getitem__(self, index: int) -> Any:
        if index >= self.num_layers:
            raise IndexError(index)
        return self.get_layer(index)


class ILayer(Object):
    _node: onnx.NodeProto
    _network: Any
    precision_is_set = False

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def type(self) -> Any:
        return self._trt.LayerType.SHUFFLE

    @property
    def num_inputs(self) -> int:
        return len(self._node.input)

    @property
    def num_outputs(self) -> int:
        return len(self._node.output)

    def get_input(self, index: int) -> Any:
        return self._network_tensor(self._node.input[index])

    def get_output(self, index: int) -> Any:
        return self._network_tensor(self._node.output[index])

    def _network_tensor(self, name: str) -> Any:
        dtype = self._network._dtypes.get(name)
        return dtype and self._make("ITensor", name=name, dtype=dtype)


class ITensor(Object):
    name = ""
    dtype: Any = None
    shape: Any = None
    is_shape_tensor = False


class OnnxParser(Object):
    def __init__(self, network: Any, logger: Any) -> None:
        self._trt._use(logger)
        self._network, self._errors = network, []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_from_string(bytes(model))
        unknown = [n for n in parsed.graph.node if not onnx.defs.has(n.op_type, n.domain)]
        self._errors += [self._make("ParserError", _node=node) for node in unknown]
        if unknown:
            return False
        graph = shape_inference.infer_shapes(parsed).graph
        values = [*graph.input, *graph.output, *graph.value_info]
        network = self._network
        network._model = parsed
        network._shapes = {value.name: shape_of(value) for value in values}
        dtypes = {value.name: value.type.tensor_type.elem_type for value in values}
        dtypes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        network._dtypes = {name: self._dtype(code) for name, code in dtypes.items() if code}
        network._inputs, network._outputs = (
            [self._io(value.name) for value in side] for side in (graph.input, graph.output)
        )
        return True

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def _dtype(self, code: int) -> Any:
        return self._trt.DataType[TYPES[np.dtype(helper.tensor_dtype_to_np_dtype(code)).name]]

    def _io(self, name: str) -> Any:
        shape = self._trt.Dims(self._network._shapes[name])
        return self._make("ITensor", name=name, dtype=self._network._dtypes[name], shape=shape)


class ParserError(Object):
    _node: onnx.NodeProto

    def desc(self) -> str:
        return "no importer registered for op"

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type


class IBuilderConfig(Object):
    DLA_core = -1
    default_device_type: Any = None
    engine_capability: Any = None
    int8_calibrator: Any = None
    profiling_verbosity: Any = None
    builder_optimization_level = 3
    num_compute_capabilities = 0
    _flags: set[Any]
    _profiles: list[Any]
    _pools: dict[Any, int]
    _cache: Any
    _capabilities: dict[int, Any]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(pool, 1 << 30)

    def get_tactic_sources(self) -> int:
        return 0

    def get_preview_feature(self, feature: Any) -> bool:
        return False

    def get_quantization_flag(self, flag: Any) -> bool:
        return False

    def add_optimization_profile(self, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        blob = bytes(serialized_timing_cache)
        release, _, entries = blob.partition(b"\n")
        if blob and not release.startswith(b"CACHE "):
            return self._refuse("Serialization assertion failed: magic tag does not match")
        return self._make(
            "ITimingCache",
            _release=release[6:].decode() or self._trt._release,
            _entries=set(json.loads(entries)) if blob else set(),
        )

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._release != self._trt._release and not ignore_mismatch:
            self._refuse("the timing cache was made by another version")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        if index >= self.num_compute_capabilities:
            raise Misuse("set num_compute_capabilities before")
        self._capabilities[index] = compute_capability
        return True


class ITimingCache(Object):
    _entries: set[str]
    _release: str

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        self._entries |= input_cache._entries
        return True

    def serialize(self) -> Any:
        content = f"CACHE {self._release}\n{json.dumps(sorted(self._entries))}"
        return self._host_memory(content.encode())


class IOptimizationProfile(Object):
    _shapes: dict[str, tuple[Any, Any, Any]]

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
        three = tuple(min), tuple(opt), tuple(max)
        if not all(a <= b <= c for a, b, c in zip(*three, strict=True)):
            raise Misuse(f"{input}: the shapes {three} are not in order")
        self._shapes[input] = three

    def __bool__(self) -> bool:
        return True


def _plan(header: dict[str, Any], model: onnx.ModelProto) -> bytes:
    return json.dumps(header).encode() + b"\n" + model.SerializeToString()


def _convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _layer_key(network: Any, node: onnx.NodeProto) -> str:
    return f"{network._shapes.get(node.input[0])} {network._shapes.get(node.output[0])}"


def _run_ms(network: Any) -> float:
    """Return how long an engine takes: a launch and the multiply-adds of every convolution."""
    sizes = {t.name: int(np.prod(t.dims)) for t in network._model.graph.initializer}
    sizes |= {
        node.output[0]: sizes.get(node.input[0], 0)
        for node in network._model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    ms = LAUNCH_MS
    for node in _convolutions(network._model):
        pixels = abs(int(np.prod(network._shapes[node.output[0]][2:])))
        ms += LAUNCH_MS + sizes.get(node.input[1], 0) * pixels / MADDS_PER_MS
    return ms
