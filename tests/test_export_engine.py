import ast
import importlib.util
import json
import sys
from pathlib import Path

import onnx
import pytest
from export_parts import INFO, SIZE, exported
from onnx import TensorProto, helper

import export.engine
import export.plan
from adapt.artifacts import file_hash
from adapt.errors import AdaptError
from export.engine import _share_cache, build_engine, trt_flavours
from export.graph import export_rest

HERE = Path(__file__).parent
NAMES = json.loads((HERE / "data" / "tensorrt_api_names.json").read_text())
LISTS = HERE.parents[1] / "shared" / "facts" / "tensorrt_api"
SOURCES = [Path(export.engine.__file__), Path(export.plan.__file__)]
CLASSES = {  # of the variables in these files
    "_context": "IExecutionContext",
    "_engine": "ICudaEngine",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "own": "ITimingCache",
    "shared": "ITimingCache",
    "error": "ParserError",
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
def folder(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "exported"


@pytest.fixture(scope="module")
def detector_onnx(folder):
    return exported(folder)


def names_in_use():
    """(class, member) of every TensorRT name in export/engine.py and export/plan.py."""
    used = set()
    for node in (n for path in SOURCES for n in ast.walk(ast.parse(path.read_text()))):
        match node:
            case ast.Attribute(ast.Attribute(ast.Name("trt"), owner), member):
                used.add((owner, member))
            case ast.Attribute(ast.Name(name) | ast.Attribute(attr=name), member):
                if name in CLASSES:
                    used.add((CLASSES[name], member))
    return used


def test_committed_names_are_exactly_those_in_use():
    committed = {(owner, name) for kind in NAMES.values() for owner in kind for name in kind[owner]}
    assert names_in_use() == committed


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["common", "rtx"])
def test_committed_names_exist_in_every_version(kind):
    if not LISTS.is_dir():
        pytest.skip(f"needs the API lists in {LISTS}")
    lists = sorted(LISTS.glob("api_*.json" if kind == "common" else "api_rtx_*.json"))
    assert lists
    for path in lists:
        api = json.loads(path.read_text())
        absent = [(o, n) for o, names in NAMES[kind].items() for n in names if n not in api[o]]
        assert not absent, path.name


RTX = {"flavour": "tensorrt_rtx"}


class TestWithTensorRTRTX:
    pytestmark = needs_rtx

    def test_deployed_graph_builds(self, detector_onnx, tmp_path):
        report = build_engine(detector_onnx, tmp_path / "detector.plan", **RTX)
        assert report.flavour == "tensorrt_rtx"
        assert report.size_bytes == (tmp_path / "detector.plan").stat().st_size > 1e6
        assert report.inputs == {"images": "float[1, 3, 128, 160]"}
        assert report.outputs["num_detections"] == "int32[1, 1]"
        sidecar = json.loads((tmp_path / "detector.plan.json").read_text())
        assert sidecar.items() >= report.to_dict().items()
        assert sidecar["onnx_sha256"] == file_hash(detector_onnx)
        assert sidecar["onnx"]["classes"] == list(INFO.classes)

    def test_rest_of_the_detector_builds(self, tmp_path):
        path = export_rest(INFO.detector, SIZE, tmp_path / "rest.onnx")
        report = build_engine(path, tmp_path / "rest.plan", **RTX)
        assert list(report.inputs) == ["lateral3", "lateral4", "lateral5", "p6"]

    @pytest.mark.parametrize(
        ("operator", "message"),
        [("Unknown", "does not read .*Unknown"), ("NonMaxSuppression", "does not build .*runners")],
    )
    def test_refused_network_shows_tensorrts_reasons(self, operator, message, tmp_path):
        path = tmp_path / "x.onnx"
        onnx.save(model_of(operator), path)
        with pytest.raises(AdaptError, match=message):
            build_engine(path, tmp_path / "x.plan", **RTX)
        assert not list(tmp_path.glob("*.plan*"))

    def test_flavours_name_the_version(self):
        assert trt_flavours()["tensorrt_rtx"].startswith("1.")

    def test_unwritable_folder_is_reported(self, detector_onnx, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(AdaptError, match="cannot write"):
            build_engine(detector_onnx, tmp_path / "file" / "x.plan", **RTX)


def model_of(operator):
    """A model of one operator that TensorRT-RTX cannot run."""
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 4, 4])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 4])
    chosen = helper.make_tensor_value_info("chosen", TensorProto.INT64, [None, 3])
    number = helper.make_tensor("number", TensorProto.INT64, [1], [4])
    node = helper.make_node(operator, ["boxes", "scores", "number"], ["chosen"])
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


class FakeCache:
    """A timing cache as TensorRT's: joined with others, then written."""

    def __init__(self, content):
        self.timings = set(bytes(content))

    def combine(self, other, ignore_mismatch):
        assert ignore_mismatch is False
        self.timings |= other.timings
        return True

    def serialize(self):
        return memoryview(bytes(sorted(self.timings)))


class FakeConfig:
    def __init__(self, timed):
        self._own = FakeCache(timed)

    def create_timing_cache(self, content):
        return FakeCache(content)

    def get_timing_cache(self):
        return self._own


def test_builds_add_what_they_timed_to_the_shared_cache(tmp_path):
    path = tmp_path / "timing-cache"
    for timed in (b"ab", b"bc", b"d"):
        _share_cache(FakeConfig(timed), path)
    assert path.read_bytes() == b"abcd"
