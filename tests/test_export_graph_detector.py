import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from export_parts import INFO, SIZE, awake, exported, rest, small_detector, tensors

from adapt.cost.units import pyramid_sizes
from adapt.data.images import InputSize
from adapt.errors import AdaptError
from export.graph.detector import DeployedDetector, export_detector, read_onnx_info
from export.graph.onnx_file import fused
from export.graph.options import GraphOptions
from export.graph.postprocess import level_anchors, run_heads
from export.graph.ranking import best_pairs
from export.graph.rest import RestOfDetector
from export.run.onnx_session import ort_session

RAW_SIZE = InputSize(120, 150, "shortest-edge")  # its letterbox is SIZE


@pytest.fixture(scope="module")
def detector_onnx(exports):
    return exported(exports)


@torch.no_grad()
def torchvision_detections(batch, model=None):
    """RetinaNet's own post-processing, padded with zeros to 100 rows."""
    found = (model or small_detector())(list(batch))
    return [
        (len(image["scores"]), image["boxes"], image["scores"], image["labels"]) for image in found
    ]


def test_anchors_are_torchvisions():
    model, (batch, _) = small_detector(), small_detector().transform([torch.zeros(3, 128, 160)])
    features = list(model.backbone(batch.tensors).values())
    assert torch.equal(
        torch.cat(level_anchors(model, SIZE, pyramid_sizes(SIZE.height, SIZE.width))),
        model.anchor_generator(batch, features)[0],
    )


def test_detections_of_three_anchors_per_cell_equal_torchvisions():
    info = replace(INFO, detector=replace(INFO.detector, anchor_scales=1))
    model, batch = awake(info.build, SIZE), tensors(2, 0)
    assert model.head.classification_head.cls_logits.out_channels == 3 * 3
    with torch.no_grad():
        number, boxes, scores, _ = DeployedDetector(model, info)(batch)
    for i, (count, *expected) in enumerate(torchvision_detections(batch, model)):
        assert number[i] == count > 20
        torch.testing.assert_close(boxes[i, :count], expected[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[i, :count], expected[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("tail", ["tensor-nms", "onnx-nms"])
@pytest.mark.parametrize("seed", range(5))
def test_detections_equal_torchvisions(seed, tail):
    batch = tensors(2, seed)
    with torch.no_grad():
        number, boxes, scores, classes = DeployedDetector(small_detector(), INFO, tail)(batch)
    for i, (count, *expected) in enumerate(torchvision_detections(batch)):
        assert number[i] == count > 50
        torch.testing.assert_close(boxes[i, :count], expected[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[i, :count], expected[1], atol=1e-6, rtol=0)
        assert torch.equal(classes[i, :count].long(), expected[2])


@pytest.mark.parametrize(("anchors", "classes", "most"), [(50, 4, 20), (5, 4, 12), (3, 2, 99)])
def test_best_pairs_are_the_best_of_all_logits(anchors, classes, most):
    logits = torch.randn(3, anchors, classes, generator=torch.Generator().manual_seed(0))
    flat = logits.flatten(1)
    expected, index = flat.topk(min(most, flat.shape[1]))
    found, anchor, label = best_pairs(logits, most)
    assert torch.equal(found, expected)
    assert torch.equal(anchor * classes + label, index)


@pytest.mark.parametrize("candidates", [40, 60])
def test_levels_are_ranked_by_themselves_only_if_more_candidates_are_left(candidates):
    config = replace(INFO.detector, candidates=candidates, nms_candidates=60)
    detector = DeployedDetector(small_detector(), replace(INFO, detector=config))
    heads = run_heads(detector.postprocess.head, detector.features(tensors(1)))
    logits, anchors, labels = detector.postprocess._candidates(heads[0])
    levels = torch.split(heads[0], detector.postprocess.anchor_counts, 1)
    pool = [level.flatten().topk(min(candidates, level.numel())).values for level in levels]
    assert torch.equal(logits[0], torch.cat(pool).topk(60).values)
    assert torch.equal(logits[0], heads[0][0, anchors[0], labels[0]])


def test_score_threshold_is_strict_and_empty_rows_are_zero():
    everything_below = replace(INFO, detector=replace(INFO.detector, score_threshold=1.0))
    with torch.no_grad():
        outputs = DeployedDetector(small_detector(), everything_below)(tensors(1))
    assert all(output.count_nonzero() == 0 for output in outputs)


def test_more_detections_than_candidates_shrink_the_output():
    few = replace(INFO, detector=replace(INFO.detector, candidates=1, detections=100))
    with torch.no_grad():
        _, boxes, _, _ = DeployedDetector(small_detector(), few)(tensors(1))
    assert boxes.shape == (1, 5, 4)


def test_laterals_and_p6_into_the_rest_are_the_whole_detector():
    model, x = small_detector(), tensors(2)
    whole = DeployedDetector(model, INFO)
    fpn = model.backbone.fpn
    with torch.no_grad():
        taps = list(model.backbone.body((x - whole.features.mean) / whole.features.std).values())
        laterals = [conv(tap) for conv, tap in zip(fpn.inner_blocks, taps, strict=True)]
        behind = RestOfDetector(model, INFO.detector, SIZE)
        parts = behind(*laterals, fpn.extra_blocks.p6(taps[-1]))
        assert all(torch.equal(a, b) for a, b in zip(parts, whole(x), strict=True))


def test_onnx_has_the_promised_inputs_and_outputs(detector_onnx):
    session = ort_session("ort-cpu", detector_onnx.read_bytes(), 1)
    found = {x.name: (x.type, x.shape) for x in (*session.get_inputs(), *session.get_outputs())}
    assert found == {
        "images": ("tensor(float)", [1, 3, 128, 160]),
        "num_detections": ("tensor(int32)", [1, 1]),
        "boxes": ("tensor(float)", [1, 100, 4]),
        "scores": ("tensor(float)", [1, 100]),
        "classes": ("tensor(int32)", [1, 100]),
    }


def test_raw_heads_have_the_letterbox_of_the_input(tmp_path):
    info = replace(INFO, input=RAW_SIZE)
    path = tmp_path / "raw.onnx"
    export_detector(small_detector(), info, path, GraphOptions("none"), provenance={})
    assert read_onnx_info(path)[0] == INFO


def test_header_says_what_the_file_is(detector_onnx):
    info, content = read_onnx_info(detector_onnx)
    assert info == INFO
    assert content["architecture_hash"] == INFO.architecture.hash
    expected = {"precision": "fp32", "tail": "tensor-nms", "batch": 1, "opset": 20}
    assert content.items() >= expected.items()
    assert content["provenance"] == {"run": "test"}


def test_export_is_byte_deterministic(detector_onnx, tmp_path):
    again = export_detector(
        small_detector(), INFO, tmp_path / "again.onnx", provenance={"run": "test"}
    )
    assert again.read_bytes() == detector_onnx.read_bytes()


def test_export_names_no_file_of_this_machine(detector_onnx):
    content = detector_onnx.read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content


def test_export_folds_batchnorm_and_leaves_the_model_alone(detector_onnx):
    kinds = {node.op_type for node in onnx.load(detector_onnx).graph.node}
    assert "BatchNormalization" not in kinds
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in small_detector().modules())


def test_fused_copy_computes_the_same():
    model, x = small_detector(), tensors(1)
    with torch.no_grad():
        pairs = zip(model.backbone(x).values(), fused(model).backbone(x).values(), strict=True)
        for expected, found in pairs:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_rest_runs_on_its_four_inputs(exports):
    session = ort_session("ort-cpu", rest(exports).read_bytes(), 1)
    inputs = {x.name: np.ones(x.shape, np.float32) for x in session.get_inputs()}
    assert list(inputs) == ["lateral3", "lateral4", "lateral5", "p6"]
    assert inputs["p6"].shape == (1, 32, 2, 3)
    assert session.run(["boxes"], inputs)[0].shape == (1, 100, 4)


def foreign_onnx(path, **properties):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [output]))
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


def test_unreadable_files_are_explained(detector_onnx, tmp_path):
    truncated, empty = tmp_path / "truncated.onnx", tmp_path / "empty.onnx"
    truncated.write_bytes(detector_onnx.read_bytes()[:5000])
    empty.touch()
    other = foreign_onnx(tmp_path / "rest.onnx", adapt=json.dumps({"format": "adapt-onnx-rest"}))
    table = [
        (truncated, "truncated.onnx is not a readable ONNX file"),
        (empty, "empty.onnx is not a readable ONNX file"),
        (tmp_path / "absent.onnx", "absent.onnx does not exist"),
        (foreign_onnx(tmp_path / "foreign.onnx"), "foreign.onnx is not an adapt onnx-detector"),
        (foreign_onnx(tmp_path / "junk.onnx", adapt="{"), "junk.onnx is not an adapt"),
        (other, "its format is 'adapt-onnx-rest'"),
    ]
    for path, message in table:
        with pytest.raises(AdaptError, match=message):
            read_onnx_info(path)


@pytest.mark.parametrize("inside_of_a_node", [False, True])
def test_parameters_in_another_file_are_not_read(inside_of_a_node, detector_onnx, tmp_path):
    model, path = onnx.load(detector_onnx), tmp_path / "a.onnx"
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    if inside_of_a_node:
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(AdaptError, match=r"a\.onnx keeps w in another file, which is not read"):
        read_onnx_info(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": "plugin"}, "tail must be one of 'tensor-nms', 'onnx-nms', 'none', got 'plugin'"),
        ({"pixels": "int8"}, "pixels must be one of 'float32', 'uint8', got 'int8'"),
        ({"precision": "int8"}, r"must be 'fp32' or 'fp16', got 'int8'.*calibrated"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"dynamic": True}, "dynamic batch needs room for 2 images or more"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(AdaptError, match=message):
        GraphOptions(**options)


def test_unwritable_folder_is_reported_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AdaptError, match="cannot write"):
        export_detector(small_detector(), INFO, tmp_path / "file" / "x.onnx", provenance={})
