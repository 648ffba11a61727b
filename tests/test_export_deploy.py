"""Every precision of a deployed detector, on image files."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from export_parts import INFO, exported, images, saved, small_detector
from PIL import Image
from processor import skip_where_int8_saturates
from pycocotools.coco import COCO
from simulated_gpu import simulated_gpu

from adapt.data.images import find_images, open_image
from adapt.detector.file import save_detector
from adapt.errors import AdaptError
from export.deploy import Deployment, check_engine, deploy, quantizer
from export.engine.build import build_engine
from export.engine.configure import BuildOptions
from export.graph.detector import read_onnx_info
from export.run.matching import Tolerances
from export.run.parity import compare_artifacts, raw_head_differences
from export.run.predict import predict
from export.run.runner import open_runner

RTX = BuildOptions(flavour="tensorrt_rtx")


@pytest.fixture(scope="module")
def detector(exports):
    return saved(exports)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise of several sizes, one of them turned by its EXIF data."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(128, 160), (100, 90), (64, 200)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    turned = Image.fromarray(rng.integers(0, 256, (60, 120, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def deployed(detector, photos, tmp_path_factory):
    """Path and summary by precision."""
    folder = tmp_path_factory.mktemp("deployed")
    options = {"tail": "tensor-nms", "calibration": [photos], "verify": [photos]}
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8")}
    return {
        name: (path, deploy(detector, path, Deployment(precision=name, **options)))
        for name, path in paths.items()
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_files_say_their_precision_and_detect(deployed, precision, photos):
    if precision == "int8":
        skip_where_int8_saturates()
    path, summary = deployed[precision]
    info, content = read_onnx_info(path)
    assert (info, content["precision"], summary["precision"]) == (INFO, precision, precision)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    with open_runner("ort-cpu", path) as runner:
        assert runner.precision == precision
    assert summary["parity"]["match"]["matched"] > 100
    assert json.loads(path.with_name(f"{path.name}.parity.json").read_text()) == summary["parity"]


def test_lower_precision_is_smaller(deployed):
    fp32, fp16, int8 = (deployed[name][1]["size_mb"] for name in ("fp32", "fp16", "int8"))
    assert fp16 < 0.6 * fp32
    assert int8 < 0.35 * fp32


def test_int8_activations_are_calibrated_one_by_one(deployed):
    model = onnx.load(deployed["int8"][0])
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor).item()
        for tensor in model.graph.initializer
        if tensor.name.endswith("_scale") and not tensor.dims
    }
    assert len(set(scales.values())) > 0.5 * len(scales)  # many are those of ReLU6
    assert all(0 < scale < 10 for scale in scales.values())


def test_a_processor_computes_every_convolution_of_int8_in_integers(deployed, tmp_path):
    import onnxruntime

    exported = Counter(node.op_type for node in onnx.load(deployed["int8"][0]).graph.node)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(deployed["int8"][0], options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    assert run["QLinearConv"] == exported["Conv"] > 40
    assert run["Conv"] == run["FusedConv"] == 0
    # The image becomes integers, and P7 reads P6 without what is below 0; heads end on 5 levels.
    assert run["QuantizeLinear"] == 2
    assert run["DequantizeLinear"] == 2 * 5 + 1


def test_int8_for_a_processor_does_not_become_an_engine(deployed, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    with pytest.raises(AdaptError, match=r"int8 for ONNX Runtime.*with --int8-for tensorrt"):
        build_engine(deployed["int8"][0], tmp_path / "a.plan", RTX)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"precision": "fp16", "int8_for": "tensorrt"}, "--precision is fp16; leave it out"),
        ({"int8_for": "ort-cpu", "engine": RTX}, "zero points, which TensorRT refuses"),
    ],
)
def test_int8_is_for_the_library_that_runs_it(how, message, photos):
    with pytest.raises(AdaptError, match=message):
        Deployment(**{"precision": "int8", "calibration": [photos], **how})


@pytest.mark.trt
def test_a_file_in_fp16_becomes_an_engine(deployed, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    report = build_engine(deployed["fp16"][0], tmp_path / "a.plan", RTX)
    assert report.precision == "fp16"
    assert report.layers["fp16"] > 0
    assert report.inputs == {"images": "float[1, 3, 128, 160]"}


@pytest.mark.trt
def test_int8_of_an_engine_is_fp16_where_it_is_not_quantised(deployed, detector, photos, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path = tmp_path / "a.onnx"
    how = Deployment(precision="int8", calibration=[photos], verify=[photos], engine=RTX)
    summary = deploy(detector, path, how)
    assert read_onnx_info(path)[1]["rest"] == "fp16"
    assert summary["layers"]["int8"] > 0.15
    assert summary["layers"]["fp16"] > 0.15
    # As far from fp32 as int8 files whose rest is fp32.
    _, between_fp32 = deployed["int8"]
    for name, difference in summary["parity"]["heads"].items():
        assert difference < 1.5 * between_fp32["parity"]["heads"][name]


def test_batches_hold_several_images(detector, photos, tmp_path):
    wanted = Deployment(batch=2, pixels="uint8", precision="int8", calibration=[photos])
    summary = deploy(detector, tmp_path / "two.onnx", wanted)
    assert (summary["input"], summary["tail"]) == ("uint8 2x3x128x160", "onnx-nms")
    with open_runner("ort-cpu", tmp_path / "two.onnx") as runner:
        assert len(runner.infer(images(2))) == 2


def test_sensitive_weights_stay_in_fp32(detector, photos, tmp_path):
    path = tmp_path / "kept.onnx"
    with quantizer(detector, path, Deployment(precision="int8", calibration=[photos])) as int8:
        ranking = int8.most_sensitive(batches=1)
        assert len(ranking) == len(set(ranking)) > 50
        int8.write()
        path.rename(tmp_path / "all.onnx")
        int8.write(ranking[:20])
    every, kept = (onnx.load(tmp_path / name) for name in ("all.onnx", "kept.onnx"))
    names = {tensor.name for tensor in kept.graph.initializer}
    assert {f"{name}_scale" for name in ranking[20:]} <= names
    assert not {f"{name}_scale" for name in ranking[:20]} & names
    assert read_onnx_info(tmp_path / "kept.onnx")[1]["kept_in_fp32"] == ranking[:20]
    found = [
        raw_head_differences(small_detector(), tmp_path / name, [images(1)])["cls_logits"]
        for name in ("all.onnx", "kept.onnx")
    ]
    assert found[1] < found[0]
    assert len(every.graph.node) > len(kept.graph.node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "int8 needs images to calibrate on.*--calibration"),
        ({"precision": "int8", "calibration": ["no"]}, r"image .*no does not exist"),
        ({"precision": "int8", "calibration": ["empty"]}, r"folder .*empty holds no image"),
        ({"precision": "int8", "calibration": ["bad.png"]}, r"bad\.png cannot be decoded"),
        ({"precision": "int8", "calibration": ["good.png"], "batch": 3}, "1 images do not fill"),
        ({"verify": ["bad.png"]}, r"bad\.png cannot be decoded"),
        ({"tail": "onnx-nms", "engine": RTX}, "TensorRT-RTX has no NonMaxSuppression"),
        ({"nms_candidates": 3841, "engine": RTX}, "ranks at most 3840 .*--nms-candidates"),
    ],
)
def test_bad_input_is_refused_before_anything_is_exported(
    detector, options, message, tmp_path, monkeypatch
):
    monkeypatch.setattr("export.deploy.export_detector", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_text("text")
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    for name in ("calibration", "verify"):
        options = {**options, name: [tmp_path / p for p in options.get(name, ())]}
    out = tmp_path / "out.onnx"
    with pytest.raises(AdaptError, match=message):
        deploy(detector, out, Deployment(**options))
    assert not list(tmp_path.glob("*.onnx*"))
    assert not list(tmp_path.glob(".*"))


def test_a_tail_that_no_cuda_graph_holds_is_warned_of_before_it_is_built(capsys):
    with simulated_gpu():
        check_engine(Deployment(tail="onnx-nms", engine=BuildOptions("tensorrt")), 1000)
        told = capsys.readouterr()
        check_engine(Deployment(engine=BuildOptions("tensorrt")), 1000)
    assert "tail onnx-nms, so it runs in no CUDA graph" in told.err
    assert told.out == ""
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("runtime", ["torch", "ort-cpu"])
def test_predictions_are_drawn_and_written_in_pixels_of_the_image(
    runtime, detector, deployed, photos, tmp_path
):
    artifact = detector if runtime == "torch" else deployed["fp32"][0]
    files = find_images([photos])
    with open_runner(runtime, artifact) as runner:
        content = predict(runner, files, tmp_path, score_threshold=0.2)
    assert json.loads((tmp_path / "predictions.json").read_text()) == content
    assert [c["name"] for c in content["categories"]] == list(INFO.classes)
    assert [c["id"] for c in content["categories"]] == [7, 18, "90"]
    assert {found["category_id"] for found in content["annotations"]} <= {7, 18, "90"}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert sizes[4] == (60, 120)  # as it is seen, not as it is stored
    for number, path in enumerate(files, start=1):
        with Image.open(tmp_path / f"{number:04d}_{path.stem}.jpg") as drawn:
            assert drawn.size == sizes[number]
    assert len(content["annotations"]) > 20
    for found in content["annotations"]:
        x, y, width, height = found["bbox"]
        assert found["score"] >= 0.2
        assert x + width <= sizes[found["image_id"]][0] + 1e-3
        assert y + height <= sizes[found["image_id"]][1] + 1e-3


def test_pycocotools_opens_predictions_and_finds_them_by_image_and_category(
    detector, photos, tmp_path
):
    with open_runner("torch", detector) as runner:
        content = predict(runner, find_images([photos]), tmp_path, score_threshold=0.2)
    found = COCO(tmp_path / "predictions.json")
    assert found.getCatIds(catNms=["square"]) == [18]
    boxes = found.loadAnns(
        found.getAnnIds(imgIds=[2], catIds=[18], areaRng=[0, 1e9], iscrowd=False)
    )
    assert boxes == [
        box for box in content["annotations"] if (box["image_id"], box["category_id"]) == (2, 18)
    ]
    assert len(boxes) > 3
    assert all(box["area"] == box["bbox"][2] * box["bbox"][3] for box in boxes)
    assert len(found.getAnnIds()) == len(content["annotations"])  # no id twice
    assert len(found.loadRes(content["annotations"]).getAnnIds()) == len(found.getAnnIds())


def test_detectors_that_do_not_know_category_ids_count_them_and_say_so(photos, tmp_path):
    path = tmp_path / "old.safetensors"
    save_detector(path, small_detector(), replace(INFO, category_ids=None))
    with open_runner("torch", path) as runner:
        content = predict(runner, [photos / "0.png"], tmp_path)
    assert [c["id"] for c in content["categories"]] == [1, 2, 3]
    assert "category ids are counted from 1" in content["info"]["description"]


def test_images_are_found_in_folders_and_below(photos, tmp_path):
    (tmp_path / "below").mkdir()
    Image.new("L", (40, 40)).save(tmp_path / "below" / "grey.PNG")
    found = find_images([photos / "0.png", tmp_path])
    assert found == [photos / "0.png", tmp_path / "below" / "grey.PNG"]
    assert open_image(found[1]).mode == "RGB"


def compared(first, second, images, **tolerances):
    with open_runner("torch", first) as a, open_runner("ort-cpu", second) as b:
        return compare_artifacts(a, b, find_images(images), tolerances=Tolerances(**tolerances))


def test_artifacts_of_one_precision_are_the_same(detector, deployed, photos):
    report = compared(detector, deployed["fp32"][0], [photos])
    assert (report.passed, report.images) == (True, 4)
    assert report.match.matched > 100


def test_raw_heads_are_compared_where_one_artifact_ends_in_them(detector, photos, exports):
    heads = exported(exports, "none")
    report = compared(detector, heads, [photos])
    assert (report.passed, report.match) == (True, None)
    assert 0 < max(report.heads.values()) < 1e-4
    detections = exported(exports)
    with (
        open_runner("ort-cpu", heads) as a,
        open_runner("ort-cpu", detections) as b,
        pytest.raises(AdaptError, match=r"ends in detections; export it with tail 'none'"),
    ):
        compare_artifacts(a, b, find_images([photos]))


def test_the_worst_image_of_other_artifacts_is_named(detector, deployed, photos):
    report = compared(detector, deployed["int8"][0], [photos])
    assert not report.passed
    assert report.worst["image"] in map(str, find_images([photos]))
    differing = report.worst["missing"] + report.worst["extra"]
    assert differing >= (report.match.missing + report.match.extra) / 4
    loose = compared(detector, deployed["int8"][0], [photos], score=0.5, box=50.0)
    assert loose.match.matched > report.match.matched


def test_other_detectors_are_not_compared(detector, deployed, photos, tmp_path):
    other = tmp_path / "other.safetensors"
    config = replace(INFO.detector, num_classes=4)
    info = replace(INFO, classes=("a", "b", "c", "d"), category_ids=None, detector=config)
    save_detector(other, info.build(), info)
    with pytest.raises(AdaptError, match=r"with 4 classes.*with 3; compare artifacts of one"):
        compared(other, deployed["fp32"][0], [photos])
