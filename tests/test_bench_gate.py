from dataclasses import replace

import pytest
from export_parts import INFO, small_detector

from adapt.coco import load_split
from adapt.detector_file import save_detector
from adapt.errors import AdaptError
from adapt.synthetic import generate
from bench.gate import check_ap, deploy_within

OPTIONS = {"tail": "tensor-nms", "trt": False, "batch": 1}


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
    summary = deploy_within(detector, out, gate=0.5, data=data, **OPTIONS)
    assert out.is_file()
    gate = summary["ap_gate"]
    assert gate["images"] == 3
    assert gate["drop"] == pytest.approx(gate["ap_torch"] - gate["ap_artifact"])


def test_an_export_that_loses_more_is_refused_and_not_written(detector, data, tmp_path):
    out = tmp_path / "a.onnx"
    with pytest.raises(AdaptError, match=r"AP drops by .* more than --ap-gate -200"):
        deploy_within(detector, out, gate=-200.0, data=data, **OPTIONS)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "pass a data set with --data"),
        ({"tail": "none"}, "use a tail with NMS and batch 1"),
        ({"batch": 2}, "use a tail with NMS and batch 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(detector, data, tmp_path, options, message):
    asked = {"data": data, **OPTIONS, **options}
    with pytest.raises(AdaptError, match=message):
        deploy_within(detector, tmp_path / "a.onnx", gate=0.5, **asked)


def test_gate_counts_images_of_both(detector, data):
    seen = []
    split = load_split(data, "val")
    check_ap(detector, detector, split, 1.0, runtime="torch", progress=lambda *s: seen.append(s))
    assert seen[-1][:2] == (6, 6)
