from dataclasses import replace

import pytest
from export_parts import INFO, small_detector

from adapt.data.coco import load_split
from adapt.data.synthetic import generate
from adapt.detector.file import save_detector
from adapt.errors import AdaptError
from bench.acceptance.ap_gate import Gate, GateOptions, deploy_within
from export.deploy import Deployment
from export.graph.detector import read_onnx_info


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("gate") / "data"
    return generate(root, seed=5, train=2, val=3, size=(128, 160))


@pytest.fixture(scope="module")
def detector(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("gate") / "detector.safetensors"
    classes = load_split(data, "val").class_names
    save_detector(path, small_detector(), replace(INFO, classes=classes))
    return path


def test_a_faithful_export_passes_and_tells_both_aps(detector, data, tmp_path):
    out = tmp_path / "a.onnx"
    summary = deploy_within(GateOptions(0.5, data), detector, out, Deployment())
    assert out.is_file()
    gate = summary["ap_gate"]
    assert gate["images"] == 3
    assert gate["drop"] == pytest.approx(gate["ap_torch"] - gate["ap_artifact"])
    assert gate["ap_engine"] is None


def test_int8_that_loses_too_much_keeps_sensitive_weights_until_it_passes(
    detector, data, tmp_path, monkeypatch
):
    """The AP of a random detector says nothing, so it is made up: two kept weights are enough."""
    aps = iter([50.0, 40.0, 45.0, 49.9])  # PyTorch, then none, one and two weights kept
    monkeypatch.setattr(Gate, "ap", lambda *_: next(aps))
    wanted = Deployment(precision="int8", calibration=[data])
    summary = deploy_within(GateOptions(0.5, data), detector, tmp_path / "a.onnx", wanted)
    gate = summary["ap_gate"]
    assert gate["drops"] == pytest.approx({0: 10.0, 1: 5.0, 2: 0.1})
    assert len(gate["kept_in_fp32"]) == 2
    kept = read_onnx_info(tmp_path / "a.onnx")[1]["kept_in_fp32"]
    assert tuple(kept) == gate["kept_in_fp32"]


def test_an_export_that_loses_more_is_refused_and_not_written(detector, data, tmp_path):
    with pytest.raises(AdaptError, match=r"AP drops by .* more than --ap-gate -200"):
        deploy_within(GateOptions(-200.0, data), detector, tmp_path / "a.onnx", Deployment())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "data_given", "message"),
    [
        ({}, False, "pass a data set with --data"),
        ({"tail": "none"}, True, "tail 'none' has none; use another tail"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    detector, data, tmp_path, options, data_given, message
):
    wanted, given = Deployment(**options), data if data_given else None
    with pytest.raises(AdaptError, match=message):
        deploy_within(GateOptions(0.5, given), detector, tmp_path / "a.onnx", wanted)


def test_gate_tells_of_every_image(detector, data):
    seen = []
    Gate(detector, load_split(data, "val"), 1.0, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "AP on torch"), (2, 3, "AP on torch"), (3, 3, "AP on torch")]
