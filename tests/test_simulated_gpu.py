"""What adapt asks of TensorRT and CUDA, on a simulated GPU, and whether wrong use is seen."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from core_parts import once
from export_parts import INFO, dynamic, exported, half, images, int8, small_detector
from simulated_cuda import Misuse
from simulated_gpu import Simulation, simulated_gpu
from simulated_tensorrt import VERSIONS
from test_cli import data_root, ok, written_recipe

from adapt.cost.table import CostTable
from adapt.data.coco import CocoSplit
from adapt.detector.file import save_detector
from bench.latency.timing import Protocol
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.execution import EngineExecution
from export.run.runner import OrtRunner, open_runner


@pytest.fixture(scope="module")
def graphs(exports: Path) -> dict[str, Path]:
    """ONNX files of the small detector in every precision and tail."""
    files = {"fp32": exported(exports), "dynamic": dynamic(exports)}
    files |= {tail: exported(exports, tail) for tail in ("none", "onnx-nms")}  # type: ignore[arg-type]
    return files | {"fp16": half(exports), "int8": int8(exports)}


@pytest.fixture(params=VERSIONS, scope="module")
def gpu(request: pytest.FixtureRequest) -> Iterator[Simulation]:
    with simulated_gpu(request.param) as gpu:
        yield gpu


def built(gpu: Simulation, onnx: Path, folder: Path) -> Path:
    cache = folder / "timing.cache"
    options = BuildOptions(gpu.trt.__name__, timing_cache=cache, workspace_mb=256, level=2)
    build_engine(onnx, folder / "detector.plan", options)
    return folder / "detector.plan"


def runtime(gpu: Simulation) -> str:
    return str(gpu.trt.__name__).replace("_", "-")


@pytest.mark.parametrize("graph", ["fp32", "fp16", "int8"])
def test_engines_of_every_version_run_as_graphs_and_detect_what_their_files_do(
    gpu: Simulation, graphs: dict[str, Path], graph: str, tmp_path: Path
) -> None:
    plan = built(gpu, graphs[graph], tmp_path)
    with open_runner(runtime(gpu), plan) as engine, OrtRunner("ort-cpu", graphs[graph]) as onnx:
        (found,), (expected,) = engine.infer(images(1, 3)), onnx.infer(images(1, 3))
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        call = engine.bind(images(1, 3))
        before = gpu.cuda.calls.count("cuda.CUDAGraph.replay")
        call(), call()
        assert gpu.cuda.calls.count("cuda.CUDAGraph.replay") - before == 2
        assert engine.describe()["cuda_graph"] is True


def test_a_graph_of_one_image_outlives_a_batch_of_three(
    gpu: Simulation, graphs: dict[str, Path], tmp_path: Path
) -> None:
    plan = built(gpu, graphs["dynamic"], tmp_path)
    with open_runner(runtime(gpu), plan) as engine, OrtRunner("ort-cpu", graphs["dynamic"]) as onnx:
        one = engine.bind(images(1))
        for found, expected in zip(engine.infer(images(3)), onnx.infer(images(3)), strict=True):
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        one()
        three = engine.bind(images(3))
        three(), one()
        assert len(engine.infer(images(2))) == 2


def test_raw_heads_and_data_dependent_tails_run_too(
    gpu: Simulation, graphs: dict[str, Path], tmp_path: Path
) -> None:
    with (
        open_runner(runtime(gpu), built(gpu, graphs["none"], tmp_path)) as engine,
        OrtRunner("ort-cpu", graphs["none"]) as onnx,
    ):
        found, expected = engine.heads(images(1)), onnx.heads(images(1))
        assert all(np.allclose(found[name], expected[name], atol=1e-4) for name in expected)
    if runtime(gpu) == "tensorrt":
        with open_runner("tensorrt", built(gpu, graphs["onnx-nms"], tmp_path)) as engine:
            engine.bind(images(1))()
            assert engine.describe()["cuda_graph"] is False


def test_without_graphs_engines_run_plainly_and_say_so(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    with (
        simulated_gpu("11.4.0.106", capturable=False) as gpu,
        open_runner("tensorrt", built(gpu, graphs["fp32"], tmp_path)) as engine,
    ):
        before = torch.cuda.current_stream()
        engine.bind(images(1))()
        assert engine.describe()["cuda_graph"] is False
        assert torch.cuda.current_stream() is before
        assert len(engine.infer(images(1))[0].scores) > 50


class Parts:
    """A network, and an engine that is ready to run, to do something wrong with."""

    def __init__(self, gpu: Simulation, onnx: Path, plan: bytes) -> None:
        self.trt, self.cuda, self.plan = gpu.trt, gpu.cuda, plan
        self.onnx = onnx.read_bytes()
        for queue in self.cuda.queues.values():  # what another wrong use has left there
            queue.clear()
        self.engine = EngineExecution(gpu.trt, plan, "the engine")
        self.context = self.engine._context
        self.logger = gpu.trt._logger
        self.builder = gpu.trt.Builder(self.logger)

    def network(self) -> Any:
        return self.builder.create_network(1 << int(self.strongly))

    @property
    def strongly(self) -> Any:
        return self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED

    def parsed(self) -> Any:
        network = self.network()
        assert self.trt.OnnxParser(network, self.logger).parse(self.onnx)
        return network

    def config(self) -> Any:
        config = self.builder.create_builder_config()
        config.clear_flag(self.trt.BuilderFlag.TF32)
        config.set_timing_cache(config.create_timing_cache(b""), False)
        return config

    def fresh_context(self) -> Any:
        return self.engine._engine.create_execution_context()

    def freed(self) -> None:
        replay = self.engine.replay()
        self.engine.buffers.clear()
        replay.__closure__[0].cell_contents[2].clear()  # type: ignore[index]
        replay()

    def copied_without_waiting(self) -> None:
        self.engine.buffers["images"].copy_(torch.zeros(4, 3, 128, 160, dtype=torch.uint8))
        self.engine.run()

    def read_without_waiting(self) -> None:
        self.engine._enqueue()
        self.engine.buffers["scores"].cpu()

    def captured_at_once(self) -> None:
        self.context.set_input_shape("images", (1, 3, 128, 160))
        with torch.cuda.graph(
            torch.cuda.CUDAGraph(), stream=self.engine.stream, capture_error_mode="thread_local"
        ):
            self.engine._enqueue()

    def synchronised_in_a_capture(self) -> None:
        self.engine.run()
        with torch.cuda.graph(
            torch.cuda.CUDAGraph(), stream=self.engine.stream, capture_error_mode="thread_local"
        ):
            self.engine.run()

    def small_buffer(self) -> None:
        self.engine.buffers["boxes"] = buffer = torch.empty(4, device="cuda")
        self.context.set_tensor_address("boxes", buffer.data_ptr())
        self.engine.run()


WRONG: dict[str, tuple[type[Exception], str, Callable[[Parts], Any]]] = {
    "an unknown class": (AttributeError, "no attribute", lambda p: p.trt.IPluginV2),
    "an unknown method": (AttributeError, "has no", lambda p: p.builder.build_engine),
    "an unknown attribute": (
        AttributeError,
        "sets no",
        lambda p: setattr(p.config(), "max_workspace_size", 1),
    ),
    "a removed flag": (AttributeError, "FP16", lambda p: p.trt.BuilderFlag.FP16),
    "an unknown argument": (
        TypeError,
        "unexpected keyword",
        lambda p: p.builder.create_network(flag=1),
    ),
    "too few arguments": (TypeError, "missing", lambda p: p.trt.OnnxParser(p.network())),
    "a text for a number": (
        TypeError,
        "index is",
        lambda p: p.engine._engine.get_tensor_name("images"),
    ),
    "a number for a flag": (TypeError, "flag is 1", lambda p: p.config().set_flag(1)),
    "an enumeration as a number": (TypeError, "unsupported", lambda p: 1 << p.strongly),
    "a logger that was not initialised": (
        TypeError,
        "ILogger.__init__",
        lambda p: p.trt.Runtime(
            type("L", (p.trt.ILogger,), {"__init__": lambda self: None})(),
        ),
    ),
    "a second logger": (
        Misuse,
        "one logger",
        lambda p: p.trt.Runtime(type("L", (p.trt.ILogger,), {})()),
    ),
    "configured before parsed": (
        Misuse,
        "parse a model",
        lambda p: p.builder.build_serialized_network(p.network(), p.config()),
    ),
    "no profile": (
        Misuse,
        "free size and no profile",
        lambda p: p.builder.build_serialized_network(p.parsed(), p.config()),
    ),
    "TF32": (
        Misuse,
        "TF32",
        lambda p: p.builder.build_serialized_network(p.parsed(), p.builder.create_builder_config()),
    ),
    "no shape": (Misuse, "no shape", lambda p: p.fresh_context().execute_async_v3(0x1000)),
    "no address": (
        Misuse,
        "no address",
        lambda p: (
            (c := p.fresh_context()).set_input_shape("images", (1, 3, 128, 160)),
            c.execute_async_v3(p.engine.stream.cuda_stream),
        ),
    ),
    "the default stream": (Misuse, "default", lambda p: p.context.execute_async_v3(0)),
    "an address of nothing": (
        Misuse,
        "no memory",
        lambda p: p.context.set_tensor_address("boxes", 0x77),
    ),
    "too little memory": (Misuse, "bytes of memory", Parts.small_buffer),
    "freed memory": (Misuse, "freed", Parts.freed),
    "a copy without synchronisation": (Misuse, "synchronise", Parts.copied_without_waiting),
    "a result without synchronisation": (Misuse, "synchronise", Parts.read_without_waiting),
    "a capture before a run": (RuntimeError, "previous error", Parts.captured_at_once),
    "waiting in a capture": (RuntimeError, "previous error", Parts.synchronised_in_a_capture),
    "a tensor of the GPU as an array": (
        AttributeError,
        "numpy",
        lambda p: p.engine.buffers["scores"].numpy(),
    ),
}


@pytest.fixture(scope="module")
def parts(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with simulated_gpu("11.4.0.106") as gpu:
        plan = built(gpu, graphs["dynamic"], tmp_path_factory.mktemp("plan"))
        yield lambda: Parts(gpu, graphs["dynamic"], plan.read_bytes())


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_seen(parts: Callable[[], Parts], case: str) -> None:
    kind, message, use = WRONG[case]
    with pytest.raises(kind, match=message):
        use(parts())


def test_tensorrt_refuses_by_its_results(parts: Callable[[], Parts]) -> None:
    wrong = parts()
    assert not wrong.context.set_input_shape("images", (5, 3, 128, 160))
    assert not wrong.context.set_tensor_address("image", 0)
    assert wrong.trt.Runtime(wrong.logger).deserialize_cuda_engine(b"damaged") is None
    other = wrong.plan.replace(b"11.4.0.106", b"10.3.0.26", 1)
    assert wrong.trt.Runtime(wrong.logger).deserialize_cuda_engine(other) is None


BLOCK = """
[[blocks]]
num_ops = 1
stride = 2
kernels = [3]
expansions = [2]
widths = [4, 8, 4]
"""
SPACE = f"""
name = "small"
source = "mobilenet_v2"
stem_width = 8
first_width = 4
taps = [2, 3, 4]
{BLOCK * 4}
"""


@pytest.fixture(scope="module")
def a100() -> Iterator[Simulation]:
    with simulated_gpu("10.16.0.72") as gpu:
        yield gpu


@pytest.fixture(scope="module")
def detector(exports: Path, tiny_data: CocoSplit) -> Path:
    """The small detector, of the classes of the generated images."""
    info = replace(INFO, classes=tiny_data.class_names)
    return once(
        exports / "of-tiny-data.safetensors",
        lambda path: save_detector(path, small_detector(), info),
    )


@pytest.fixture(scope="module")
def deployed(
    a100: Simulation,
    detector: Path,
    tiny_data: CocoSplit,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What `adapt export --trt --json` tells; that it is JSON is part of it."""
    out = tmp_path_factory.mktemp("deployed") / "detector.onnx"
    photos = data_root(tiny_data) / "images"
    return ok("export", detector, "--out", out, "--trt", "--precision", "fp16", "--verify", photos)


def test_an_engine_is_exported_run_and_judged_by_every_command(
    deployed: dict[str, Any], tiny_data: CocoSplit, tmp_path: Path
) -> None:
    plan, root = Path(deployed["engine"]), data_root(tiny_data)
    assert (deployed["flavour"], deployed["layers_of"]) == ("tensorrt", "engine")
    assert deployed["engine_parity"]["match"]["matched"] > 100
    assert plan.with_name(f"{plan.name}.parity.json").is_file()
    photos = root / "images"
    assert ok("predict", plan, photos, "--out", tmp_path / "found.json")
    assert ok("parity", deployed["onnx"], plan, photos)["passed"]
    evaluated = ok("eval", plan, "--data", root)
    short = Protocol(2, round_ms=0.1, retries=0, drift=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.networks.measure.DETECTOR_PROTOCOL", short)
        (entry,) = ok("bench", plan, "--data", root, "--rounds", 2)["entries"]
    assert entry["metrics"]["ap"] == evaluated["ap"]
    assert entry["runner"]["cuda_graph"] is True


@pytest.fixture
def part_of_an_a100() -> Iterator[Simulation]:
    with simulated_gpu("10.16.0.72", mig=True) as gpu:
        yield gpu


def test_a_profile_on_a_slice_and_its_certificate_come_from_worker_processes(
    part_of_an_a100: Simulation,
    tiny_data: CocoSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, table = written_recipe(tmp_path, tiny_data), tmp_path / "costs.sqlite"
    (tmp_path / "space.toml").write_text(SPACE)
    short = Protocol(2, round_ms=0.1, retries=0, drift=100.0, warm_up_ms=1.0)
    monkeypatch.setattr("bench.costs.profiler.GPU_PROTOCOL", short)
    monkeypatch.setattr("bench.costs.certify.WHOLE_PROTOCOL", short)
    fp16 = ("--runtime", "tensorrt", "--precision", "fp16", "--out", table)
    profiled = ok("profile", recipe, *fp16)
    assert profiled["measured_now"] == profiled["units"] + 11  # and the boundaries
    assert profiled["device"].endswith(" MIG 3g.20gb")
    with CostTable.open(table) as measured:
        clocks = {row.clock_mhz for row in measured.rows().values()}
    assert clocks == {1410.0}  # the board's: a slice tells none
    certificate = ok("costs", "certify", recipe, table, "--detectors", 6)
    assert certificate["kendall_tau"] > 0.99
    assert certificate["mape_corrected"] < 1e-6
