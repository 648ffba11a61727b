import ast
import importlib.util
import json
import sys
from pathlib import Path

import onnx
import pytest
import simulated_tensorrt
import write_tensorrt_signatures
from export_parts import INFO, dynamic, exported, half, rest
from onnx import TensorProto, helper
from simulated_gpu import simulated_gpu

import export.engine.build
import export.engine.configure
import export.engine.execution
import export.engine.installed
import export.engine.layers
from adapt.artifacts import file_hash
from adapt.errors import AdaptError
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.engine.execution import check_fits
from export.engine.installed import trt_flavours
from export.engine.layers import check_precision, inspected_layers
from export.graph.onnx_file import description_of, save_onnx

HERE = Path(__file__).parent
SIGNED = json.loads(simulated_tensorrt.SIGNATURES.read_text())
LISTS = HERE.parents[1] / "shared" / "facts" / "tensorrt_api"
MODULES = (
    export.engine.build,
    export.engine.configure,
    export.engine.installed,
    export.engine.layers,
    export.engine.execution,
)
SOURCES = [Path(module.__file__) for module in MODULES]
CLASSES = {  # of the variables in these files
    "_context": "IExecutionContext",
    "_engine": "ICudaEngine",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "e": "ParserError",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "tensor": "ITensor",
}

needs_rtx = [
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx"
    ),
]


@pytest.fixture(scope="module")
def detector_onnx(exports):
    return exported(exports)


def names_in_use():
    """(class, member) of every TensorRT name in export/engine/."""
    used = set()
    for node in (n for path in SOURCES for n in ast.walk(ast.parse(path.read_text()))):
        match node:
            case ast.Attribute(ast.Attribute(ast.Name("trt"), owner), member):
                used.add((owner, member))
            case ast.Attribute(ast.Name(name) | ast.Attribute(attr=name), member):
                if name in CLASSES:
                    used.add((CLASSES[name], member))
    return used


RTX_ONLY = {("BuilderFlag", "REQUIRE_USER_ALLOCATION")}


@pytest.mark.parametrize("release", SIGNED)
def test_every_tensorrt_has_the_names_in_use(release):
    listed = SIGNED[release]["classes"] | SIGNED[release]["enums"]
    absent = {(owner, name) for owner, name in names_in_use() if name not in listed[owner]}
    assert absent == (set() if release.startswith("rtx") else RTX_ONLY)


@pytest.mark.shared
def test_committed_signatures_are_those_of_the_bindings():
    if not LISTS.is_dir():
        pytest.skip(f"needs the API lists in {LISTS}")
    assert simulated_tensorrt.SIGNATURES.read_text() == write_tensorrt_signatures.written(LISTS)


RTX = BuildOptions(flavour="tensorrt_rtx")


class TestWithTensorRTRTX:
    pytestmark = needs_rtx

    def test_deployed_graph_builds(self, detector_onnx, tmp_path):
        report = build_engine(detector_onnx, tmp_path / "detector.plan", RTX)
        assert report.flavour == "tensorrt_rtx"
        assert report.size_bytes == (tmp_path / "detector.plan").stat().st_size > 1e6
        assert report.inputs == {"images": "float[1, 3, 128, 160]"}
        assert report.outputs["num_detections"] == "int32[1, 1]"
        sidecar = json.loads((tmp_path / "detector.plan.json").read_text())
        assert sidecar.items() >= report.to_dict().items()
        assert sidecar["onnx_sha256"] == file_hash(detector_onnx)
        assert sidecar["onnx"]["classes"] == list(INFO.classes)
        assert set(report.layers) == {"fp32", "other"}  # other: indices and masks of the tail
        assert (report.layers_of, report.profile) == ("network", {})

    def test_a_dynamic_batch_has_a_profile(self, exports, tmp_path):
        path = dynamic(exports)
        how = BuildOptions(flavour="tensorrt_rtx", workspace_mb=256, level=1, tuned_batch=2)
        report = build_engine(path, tmp_path / "d.plan", how)
        assert report.profile == {"images": [(n, 3, 128, 160) for n in (1, 2, 4)]}
        assert report.inputs == {"images": "uint8[-1, 3, 128, 160]"}
        assert (report.workspace_mb, report.level) == (256, 1)
        with pytest.raises(AdaptError, match="tuned for 1 to 4 images, got 5"):
            build_engine(path, tmp_path / "e.plan", BuildOptions("tensorrt_rtx", tuned_batch=5))

    def test_an_engine_without_the_asked_precision_is_refused(self, detector_onnx, tmp_path):
        model = onnx.load(detector_onnx)
        description = {**description_of(model), "precision": "fp16"}
        save_onnx(model, description, tmp_path / "lies.onnx")
        with pytest.raises(AdaptError, match=r"no layer .*lies.onnx computes in fp16 .*fp32"):
            build_engine(tmp_path / "lies.onnx", tmp_path / "lies.plan", RTX)
        assert not list(tmp_path.glob("lies.plan*"))

    @pytest.mark.slow  # test_bench_latency_unit_engines.py builds one that is measured
    def test_rest_of_the_detector_builds(self, exports, tmp_path):
        report = build_engine(rest(exports), tmp_path / "rest.plan", RTX)
        assert list(report.inputs) == ["lateral3", "lateral4", "lateral5", "p6"]

    @pytest.mark.parametrize(
        ("operator", "message"),
        [
            ("Unknown", "does not read .*Unknown head/nms: "),
            (
                "NonMaxSuppression",
                "does not build .*runners.*; this concerns head/nms; export",
            ),
        ],
    )
    def test_refused_network_shows_tensorrts_reasons(self, operator, message, tmp_path):
        path = tmp_path / "x.onnx"
        onnx.save(model_of(operator), path)
        with pytest.raises(AdaptError, match=message):
            build_engine(path, tmp_path / "x.plan", RTX)
        assert not list(tmp_path.glob("*.plan*"))

    def test_flavours_name_the_version(self):
        assert trt_flavours()["tensorrt_rtx"].startswith("1.")

    def test_unwritable_folder_is_reported(self, detector_onnx, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AdaptError, match="cannot write"):
            build_engine(detector_onnx, tmp_path / "file" / "x.plan", RTX)


def model_of(operator):
    """A model of one operator that TensorRT-RTX cannot run."""
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 4])
    chosen = helper.make_tensor_value_info("chosen", TensorProto.INT64, [None, 3])
    number = helper.make_tensor("number", TensorProto.INT64, [1], [4])
    inputs = ["boxes", "scores", "number"]
    node = helper.make_node(operator, inputs, ["chosen"], name="head/nms")
    graph = helper.make_graph([node], "g", [boxes, scores], [chosen], [number])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_without_tensorrt_the_error_says_what_to_install(monkeypatch, detector_onnx, tmp_path):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert trt_flavours() == {}
    with pytest.raises(AdaptError, match=r"pip install 'adapt-detector\[trt\]'"):
        build_engine(detector_onnx, tmp_path / "x.plan")


def test_truncated_onnx_is_explained(detector_onnx, tmp_path):
    (tmp_path / "half.onnx").write_bytes(detector_onnx.read_bytes()[:5000])
    with pytest.raises(AdaptError, match=r"half.onnx is not a readable ONNX file"):
        build_engine(tmp_path / "half.onnx", tmp_path / "x.plan")


@pytest.mark.parametrize(
    "options",
    [{"workspace_mb": 0}, {"level": 6}, {"level": -1}],
)
def test_build_options_out_of_range_are_refused(options):
    with pytest.raises(AdaptError, match=r"must (be|lie)"):
        BuildOptions(**options)


def test_layers_are_those_of_the_network_where_the_inspector_sees_one_node(exports, tmp_path):
    with simulated_gpu("11.4.0.106", fused=True):
        report = build_engine(half(exports), tmp_path / "a.plan")
    assert report.layers["fp16"] > 0.2
    assert report.layers_of == "network"


def test_polygraphys_reason_is_told_if_tensorrt_gives_none(exports, tmp_path, monkeypatch):
    with simulated_gpu("10.16.0.72") as gpu:
        monkeypatch.setattr(gpu.trt.Builder, "build_serialized_network", lambda *_: None)
        with pytest.raises(AdaptError, match=r"does not build .*\(Invalid Engine"):
            build_engine(exported(exports), tmp_path / "a.plan")


def inspector_json(field, *types):
    layers = [
        {
            "Name": str(number),
            "Inputs": [{"Name": "a", field: "Float"}],
            "Outputs": [{"Name": "b", field: name}],
        }
        for number, name in enumerate(types)
    ]
    return json.dumps({"Layers": layers, "Bindings": ["a", "b"]})


@pytest.mark.parametrize(
    ("field", "names"),
    [
        (
            "Format/Datatype",  # TensorRT 10
            ["Row major linear FP16 format", "Thirty-two wide Int8 format", "Float", "Float"],
        ),
        ("DataType", ["Half", "Int8", "Float", "Int64"]),  # TensorRT 11
    ],
)
def test_inspectors_of_tensorrt_10_and_11_tell_the_share_of_each_type(field, names):
    layers = inspected_layers(inspector_json(field, *names))
    assert layers == {"int8": 0.25, "fp16": 0.25, "fp32": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        json.dumps({"Layers": ["conv1", "conv2"]}),
        json.dumps({"Layers": [{"Name": "a", "Inputs": None, "Outputs": []}]}),
    ],
)
def test_an_inspector_without_types_tells_nothing(text):
    assert inspected_layers(text) is None


@pytest.mark.parametrize(("precision", "fits"), [("fp32", True), ("fp16", False), ("int8", False)])
def test_precision_is_missing_only_if_no_layer_has_it(precision, fits):
    check_precision({"int8": 0.1, "fp16": 0.1, "fp32": 0.8}, precision, "x.onnx")
    if not fits:
        with pytest.raises(AdaptError, match=f"no layer .*{precision}.*100% fp32"):
            check_precision({"fp32": 1.0}, precision, "x.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorrt_version": "10.1"}, r"was built with tensorrt 10.1, 11.4 is installed.*--trt"),
        ({"target": "NVIDIA T4"}, r"built for NVIDIA T4, this GPU is NVIDIA A100 \(SM80\)"),
        ({"target": "SM89"}, "built for SM89"),
    ],
)
def test_engines_of_another_version_or_gpu_are_refused(changes, message):
    info = {"flavour": "tensorrt", "tensorrt_version": "11.4", "target": "NVIDIA A100"}
    here = (Path("a.plan"), "11.4", "NVIDIA A100", "SM80")
    check_fits(info, *here)
    check_fits({**info, "target": "SM80"}, *here)
    with pytest.raises(AdaptError, match=message):
        check_fits({**info, **changes}, *here)
