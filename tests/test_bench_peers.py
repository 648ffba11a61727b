"""Files of other tools detect what they say, in pixels of the image, and are measured like ours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from export_parts import INFO, exported, images, small_detector, tensors
from export_parts import SIZE as OURS
from onnx import TensorProto
from peer_parts import NAMES, SIZE, as_rows, as_yolo, middles, outputs_of, peer
from PIL import Image

from adapt.cost.units import pyramid_sizes
from adapt.data.coco import load_split
from adapt.data.synthetic import generate
from adapt.errors import AdaptError
from bench.latency.timing import Protocol
from bench.networks.artifacts import on_runtimes
from bench.networks.evaluation import evaluate_artifact
from bench.networks.measure import Timing, compare
from bench.networks.pair import compare_pair
from bench.networks.report import markdown, write_report
from bench.peers.forms import recognised
from bench.peers.placing import normalised, place
from bench.peers.runner import PeerRunner, is_peer, open_detector
from bench.peers.settings import Settings, sidecar
from bench.report.page import write_page
from export.graph.detector import DeployedDetector
from export.graph.postprocess import level_anchors
from export.run.inference import ImageDetections, batch_detections
from export.run.matching import match_detections

FORMS = ("yolo", "yolo-objectness", "detr", "nms", "torchvision")
QUICK = Protocol(rounds=2, round_ms=1, retries=0)
# Two objects that overlap, of different classes, in an image of 200x100 pixels.
IN_IMAGE = np.array([[50.0, 20.0, 150.0, 80.0], [60.0, 20.0, 150.0, 80.0]])
SCORES, LABELS = np.array([0.9, 0.4]), np.array([2, 0])


def in_input(corners, form):
    """Where those boxes lie in an input of 64x64 pixels, placed as the form's default says."""
    if form == "detr":  # stretched
        return corners * np.array([0.32, 0.64, 0.32, 0.64])
    if form == "torchvision":  # 64x32, padded below
        return corners * 0.32
    return corners * 0.32 + np.array([0.0, 16.0, 0.0, 16.0])  # padded above and below


def write_peer(path, form, **changes):
    outputs = outputs_of(form, in_input(IN_IMAGE, form), SCORES, LABELS)
    return peer(path, outputs, **{"names": NAMES, **changes})


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_every_form_is_recognised_and_detects_in_pixels_of_the_image(form, tmp_path):
    with PeerRunner("ort-cpu", write_peer(tmp_path / "a.onnx", form)) as runner:
        assert runner.settings.form == form
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    np.testing.assert_allclose(found.boxes, IN_IMAGE, atol=1e-3)
    np.testing.assert_allclose(found.scores, SCORES, atol=1e-6)
    assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("form", FORMS[:2])
def test_nms_drops_the_worse_of_two_boxes_of_a_class(form, tmp_path):
    alike = np.repeat(IN_IMAGE[:1], 3, axis=0) + np.array([[0.0], [1.0], [40.0]])
    scores, labels = np.array([0.5, 0.9, 0.3]), np.array([1, 1, 1])
    path = peer(tmp_path / "a.onnx", outputs_of(form, in_input(alike, form), scores, labels))
    with PeerRunner("ort-cpu", path) as runner:
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    np.testing.assert_allclose(found.scores, [0.9, 0.3], atol=1e-6)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """One generated image with boxes of circles, squares and stars."""
    root = generate(tmp_path_factory.mktemp("data") / "set", train=1, val=4)
    return load_split(root, "val").limit(1)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_knows_all_boxes_has_an_ap_of_1(form, split, tmp_path):
    (image,), (boxes,) = split.images, split.boxes
    scale = np.array([SIZE[1] / image.width, SIZE[0] / image.height])
    if form != "detr":
        scale = np.repeat(scale.min(), 2)
    free = np.array(SIZE[::-1]) - np.round(scale * (image.width, image.height))
    margin = free * (form != "torchvision") // 2
    corners = boxes.xyxy * np.tile(scale, 2) + np.tile(margin, 2)
    outputs = outputs_of(form, corners, np.full(len(boxes), 0.8), boxes.labels)
    names = repr(list(split.class_names))
    metrics = evaluate_artifact(peer(tmp_path / "a.onnx", outputs, names=names), split)
    assert metrics.ap == pytest.approx(1.0)


@pytest.fixture(scope="module")
def ours():
    """What our small detector finds in three images, if its candidates are those of all levels."""
    info = replace(INFO, detector=replace(INFO.detector, candidates=1000))
    with torch.no_grad():
        outputs = DeployedDetector(small_detector(), info)(tensors(3))
    return batch_detections(*(output.numpy() for output in outputs))


CORNER = 'resize = "letterbox-corner"\nantialias = true\nscore_threshold = 0.05\n'


def test_our_detector_in_yolos_form_detects_the_same(ours, exports, tmp_path):
    size = (OURS.height, OURS.width)
    anchors = torch.cat(level_anchors(small_detector(), OURS, pyramid_sizes(*size))).numpy()
    path = as_yolo(exported(exports, "none"), anchors, size, tmp_path / "ours.onnx")
    sidecar(path).write_text(f"{CORNER}nms_threshold = 0.5")
    assert_same(path, ours)


def test_our_detector_with_rows_as_outputs_detects_the_same(exports, tmp_path):
    path = as_rows(exported(exports), tmp_path / "rows.onnx")
    sidecar(path).write_text(CORNER)
    with open_detector("ort-cpu", exported(exports)) as runner:
        expected = [runner.infer(image[None])[0] for image in images(3)]
    assert_same(path, expected)


def assert_same(path, expected: list[ImageDetections]):
    """Whatever the images: these are as large as the input."""
    with PeerRunner("ort-cpu", path) as runner:
        found = [runner.detect([Image.fromarray(i.transpose(1, 2, 0))])[0] for i in images(3)]
    for one, other in zip(found, expected, strict=True):
        placed = other.in_image((1.0, 1.0), OURS.width, OURS.height)
        report = match_detections(
            one, placed, score_tol=1e-4, box_tol=0.05, score_threshold=0.05, detections=100
        )
        assert report.same
        assert report.matched > 50


@pytest.mark.parametrize(
    ("shapes", "classes", "form"),
    [
        ([(1, 84, 8400)], 80, "yolo"),
        ([(1, 84, 8400)], None, "yolo"),
        ([(1, 25200, 85)], None, "yolo-objectness"),
        ([(1, 6, 8400)], 2, "yolo"),
        ([(1, 25200, 6)], 1, "yolo-objectness"),
        ([(1, 84, 84)], 80, "yolo"),
        ([(1, 84, 84)], None, None),
        ([(1, 300, 6)], None, "nms"),
        ([(1, 300, 4), (1, 300, 91)], None, "detr"),
        ([(100, 4), (100,), (100,)], None, "torchvision"),
        ([(0, 4), (0,), (0,)], None, "torchvision"),
        ([(100, 4), (100,)], None, None),
        ([(1, 8400, 4), (1, 8400, 80)], None, None),  # boxes and scores of a grid
        ([(1, 116, 8400)], 80, None),  # masks too
        ([(1, 300, 4)], None, None),
        ([], None, None),
    ],
)
def test_shapes_tell_the_form(shapes, classes, form):
    assert recognised(shapes, classes) == form


@pytest.mark.parametrize(
    ("resize", "corner", "factors", "row"),
    [
        ("letterbox", (0, 16), (0.32, 0.32), [114, 255, 255, 114]),
        ("letterbox-corner", (0, 0), (0.32, 0.32), [255, 255, 114, 114]),
        ("stretch", (0, 0), (0.32, 0.64), [255] * 4),
    ],
)
def test_an_image_is_placed_as_told(resize, corner, factors, row):
    placed = place(Image.new("RGB", (200, 100), "white"), SIZE, Settings(resize=resize))
    assert (placed.corner, placed.factors) == (corner, factors)
    assert placed.pixels[0, 8::16, 32].tolist() == row


def test_pixels_are_scaled_and_ordered_as_told():
    red = np.array([255, 0, 51], np.uint8).reshape(1, 3, 1, 1)
    settings = Settings(channels="BGR", mean=(0.2, 0.0, 0.5), std=(1.0, 1.0, 0.5))
    np.testing.assert_allclose(normalised(red, settings, np.float32).ravel(), [0, 0, 1], atol=1e-6)
    bytes_as_they_are = normalised(red, Settings(white=255.0), np.float32).ravel()
    np.testing.assert_allclose(bytes_as_they_are, [255, 0, 51], atol=1e-4)
    assert normalised(red, Settings(), np.uint8).dtype == np.uint8


def test_settings_beside_the_file_win_over_what_it_says(tmp_path):
    path = write_peer(tmp_path / "a.onnx", "yolo")
    sidecar(path).write_text('classes = ["", "b", "c"]\ndetections = 1\nscore_threshold = 0.5')
    with PeerRunner("ort-cpu", path) as runner:
        assert runner.classes == ("", "b", "c")
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    assert found.labels.tolist() == [2]


def test_softmax_leaves_out_the_class_that_is_no_object(tmp_path):
    boxes = middles(in_input(IN_IMAGE[:1], "detr")) / 64
    outputs = {"dets": boxes[None], "labels": np.log([[[0.6, 0.1, 0.3]]])}
    path = peer(tmp_path / "a.onnx", outputs)
    sidecar(path).write_text('activation = "softmax"\ndetections = 2')
    with PeerRunner("ort-cpu", path) as runner:
        assert runner.class_count == 2
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    np.testing.assert_allclose(found.scores, [0.6, 0.1], atol=1e-6)


def test_logits_of_four_classes_are_not_taken_for_boxes(tmp_path):
    boxes = middles(in_input(IN_IMAGE[:1], "detr")) / 64
    outputs = {"logits": np.full((1, 1, 4), -9.0), "pred_boxes": boxes[None]}
    outputs["logits"][..., 3] = 2.0
    with PeerRunner("ort-cpu", peer(tmp_path / "a.onnx", outputs)) as runner:
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    assert found.labels[0] == 3
    np.testing.assert_allclose(found.boxes[0], IN_IMAGE[0], atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_class_of_no_use_takes_the_place_of_none(form, tmp_path):
    path = write_peer(tmp_path / "a.onnx", form)
    sidecar(path).write_text('classes = ["a", "b", ""]\ndetections = 1')
    with PeerRunner("ort-cpu", path) as runner:
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    assert found.labels.tolist() == LABELS[1:].tolist()  # the better one is of the class ""


def test_as_many_detections_count_as_in_yolos_own_validation(tmp_path):
    corners = np.tile(in_input(IN_IMAGE[:1], "nms"), (300, 1))
    outputs = outputs_of("nms", corners, np.full(300, 0.5), np.zeros(300, int))
    with PeerRunner("ort-cpu", peer(tmp_path / "a.onnx", outputs, names=NAMES)) as runner:
        (found,) = runner.detect([Image.new("RGB", (200, 100))])
    assert len(found.boxes) == runner.most_detections == 300


def test_an_input_of_one_image_without_a_batch_is_given(tmp_path):
    path = write_peer(tmp_path / "a.onnx", "torchvision", shape=(3, *SIZE))
    with PeerRunner("ort-cpu", path) as runner:
        found = runner.detect([Image.new("RGB", (200, 100))] * 2)
        runner.bind(runner.placed(Image.new("RGB", (200, 100))))()
        assert (runner.size, runner.batch, runner.dynamic) == (SIZE, 1, False)
    np.testing.assert_allclose(found[1].boxes, IN_IMAGE, atol=1e-3)


def test_labels_that_nothing_explains_are_not_guessed(split, tmp_path):
    path = write_peer(tmp_path / "a.onnx", "torchvision", names="")
    with PeerRunner("ort-cpu", path) as runner, pytest.raises(AdaptError) as error:
        runner.matched(split)
    names = ", ".join(f'"{name}"' for name in split.class_names)
    assert f'write classes = ["", {names}] into {sidecar(path)}' in str(error.value)


@pytest.mark.parametrize(
    ("changes", "beside", "said"),
    [
        ({"task": "segment"}, "", "is for the task 'segment'; export a detector"),
        ({"more_inputs": ["sizes"]}, "", "instead of images [N, 3, H, W] alone"),
        ({"shape": (*SIZE, 3)}, "", "instead of images [N, 3, H, W] alone"),
        ({"shape": (1, *SIZE, 3)}, "", "instead of images [N, 3, H, W] alone"),
        ({"kind": TensorProto.INT32}, "", "takes pixels of type INT32"),
        ({"shape": (1, 3, "h", "w")}, "", "write input = [HEIGHT, WIDTH] into"),
        ({"names": "['a', 'b']"}, "", "have no form of a detector that is known for 2 classes"),
        ({"names": "['a', 'b']"}, 'form = "yolo"', "finds 3 classes, but 2 are named"),
        ({}, 'form = "torchvision"', "do not have the form 'torchvision'; correct form in"),
        ({}, 'form = "detr"', "do not have the form 'detr'; correct form in"),
        ({}, "score_treshold = 0.1", "is score_threshold meant?"),
        ({}, "score_threshold = 7", "score_threshold must lie in [0, 1], got 7"),
        ({}, "std = [0, 1, 1]", "std must be positive"),
        ({}, "detections = 0", "detections must be positive"),
        ({}, "form: yolo", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_understood_says_what_to_write(changes, beside, said, tmp_path):
    path = write_peer(tmp_path / "a.onnx", "yolo", **changes)
    if beside:
        sidecar(path).write_text(beside)
    with pytest.raises(AdaptError) as error:
        PeerRunner("ort-cpu", path)
    assert said in str(error.value)


def test_a_free_size_is_what_is_noted_or_told(tmp_path):
    free = {"shape": ("n", 3, "h", "w")}
    noted = write_peer(tmp_path / "a.onnx", "yolo", imgsz="[64, 96]", **free)
    told = write_peer(tmp_path / "b.onnx", "yolo", **free)
    sidecar(told).write_text("input = [64, 96]")
    for path in (noted, told):
        with PeerRunner("ort-cpu", path) as runner:
            assert (runner.size, runner.dynamic) == ((64, 96), True)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.UINT8])
def test_pixels_of_other_types_are_given(kind, tmp_path):
    with PeerRunner("ort-cpu", write_peer(tmp_path / "a.onnx", "nms", kind=kind)) as runner:
        assert len(runner.detect([Image.new("RGB", (200, 100))])[0].boxes) == 2


def test_classes_are_matched_by_name_then_by_order_or_refused(split, tmp_path):
    nameless = write_peer(tmp_path / "a.onnx", "yolo", names="")
    with PeerRunner("ort-cpu", nameless) as runner:
        assert runner.matched(split) is split
        fewer = replace(split, class_names=split.class_names[:2])
        with pytest.raises(AdaptError, match=r"finds 3 classes and does not name them.*has 2; wr"):
            runner.matched(fewer)
    other = write_peer(tmp_path / "b.onnx", "yolo", names="['cat', 'dog', 'bird']")
    with (
        PeerRunner("ort-cpu", other) as runner,
        pytest.raises(AdaptError, match=r"b.onnx has the classes cat, dog"),
    ):
        runner.matched(split)


def test_a_file_of_ours_is_no_peer(exports, tmp_path):
    assert not is_peer(exported(exports))
    assert not is_peer(tmp_path / "missing.onnx")
    assert is_peer(write_peer(tmp_path / "a.onnx", "yolo"))


def test_peers_and_ours_stand_in_one_report(split, exports, tmp_path):
    split = replace(split, class_names=INFO.classes)  # only the names differ
    theirs = write_peer(tmp_path / "theirs.onnx", "yolo", names=repr(list(INFO.classes)))
    files = on_runtimes([exported(exports), theirs])
    steps = []
    result = compare(
        files, split, Timing(protocol=QUICK), progress=lambda *step: steps.append(step[:2])
    )
    our, their = result.entries
    assert (our.network_ms, their.madds, their.architecture) == (None, None, "")
    assert 0 < their.network_ms < their.latency.p50_ms  # NMS is timed too
    assert (their.height, their.width, their.precision) == (*SIZE, "fp32")
    assert steps[-1] == (8, 8)  # 2 images; 2 rounds of ours, of theirs, and of their network alone
    assert "theirs was written by another tool (form yolo" in markdown(result)


def test_the_page_of_a_benchmark_shows_ours_beside_a_peers(split, exports, tmp_path):
    split = replace(split, class_names=INFO.classes)
    theirs = write_peer(tmp_path / "theirs.onnx", "yolo", names=repr(list(INFO.classes)))
    files = on_runtimes([exported(exports), theirs])
    report = tmp_path / "report"
    write_report(report, compare(files, split, Timing(protocol=QUICK), report=report))
    page = write_page(report).read_text()
    assert "Another tool wrote theirs, whose blocks are not known." in page
    assert "are gone" not in page


@pytest.mark.parametrize(
    ("form", "inside", "drops"),
    [("yolo", False, False), ("nms", False, True), ("torchvision", True, True)],
)
def test_a_report_says_what_is_inside_of_a_peers_file(form, inside, drops, split, tmp_path):
    split = replace(split, class_names=INFO.classes)
    theirs = write_peer(tmp_path / "theirs.onnx", form, names=repr(list(INFO.classes)))
    said = markdown(compare(on_runtimes([theirs]), split, Timing(protocol=QUICK)))
    assert ("normalisation is inside of its graph" in said) is inside
    assert ("are those of its export" in said) is drops


def test_ours_is_compared_with_a_peer_in_one_sentence(split, exports, tmp_path):
    split = replace(split, class_names=INFO.classes)
    theirs = write_peer(tmp_path / "theirs.onnx", "nms", names=repr(list(INFO.classes)))
    found = compare_pair(exported(exports), theirs, split, Timing(protocol=QUICK), samples=5)
    assert "theirs.onnx" in found.verdict
