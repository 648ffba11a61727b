import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from export_parts import INFO, exported, images, small_detector
from torch import nn

from adapt.errors import AdaptError
from export.graph.detector import export_detector
from export.graph.options import GraphOptions
from export.run.inference import ImageDetections
from export.run.matching import Tolerances, match_detections
from export.run.parity import NamedImages, raw_head_differences, verify_export

TOLERANCES = {"score_tol": 0.01, "box_tol": 0.5}


def detections(*rows):
    """Detections of (score, label, left edge)."""
    boxes = np.array([[x, 0, x + 10, 10] for _, _, x in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for score, _, _ in rows], np.float32)
    return ImageDetections(boxes, scores, np.array([label for _, label, _ in rows], np.int64))


def test_near_equal_scores_may_swap_rows():
    a = detections((0.9, 0, 0.0), (0.8, 1, 50.0))
    b = detections((0.801, 1, 50.25), (0.9, 0, 0.0))
    report = match_detections(a, b, **TOLERANCES)
    assert (report.same, report.matched) == (True, 2)
    assert report.score_difference == pytest.approx(0.001, abs=1e-5)
    assert report.box_difference == 0.25


def test_equal_rows_match_once():
    a = detections((0.9, 0, 0.0), (0.9, 0, 0.0))
    report = match_detections(a, detections((0.9, 0, 0.0)), **TOLERANCES)
    assert (report.matched, report.missing, report.extra) == (1, 1, 0)


@pytest.mark.parametrize(
    "other", [(0.9, 1, 0.0), (0.85, 0, 0.0), (0.9, 0, 1.0)], ids=["class", "score", "box"]
)
def test_another_detection_is_missing_here_and_extra_there(other):
    report = match_detections(detections((0.9, 0, 0.0)), detections(other), **TOLERANCES)
    assert (report.matched, report.missing, report.extra) == (0, 1, 1)
    assert not report.same


@pytest.mark.parametrize(("score", "same"), [(0.055, True), (0.065, False)])
def test_only_detections_at_the_threshold_may_be_on_one_side(score, same):
    a, b = detections((0.9, 0, 0.0), (score, 0, 99.0)), detections((0.9, 0, 0.0))
    for pair in ((a, b), (b, a)):
        report = match_detections(*pair, **TOLERANCES, score_threshold=0.05)
        assert (report.same, report.excused) == (same, int(same))


@pytest.mark.parametrize(("limit", "same"), [(2, True), (3, False)])
def test_near_equal_scores_may_be_cut_off_at_the_limit_only(limit, same):
    a = detections((0.9, 0, 0.0), (0.5, 0, 50.0))
    b = detections((0.9, 0, 0.0), (0.501, 0, 99.0))
    assert match_detections(a, b, **TOLERANCES, detections=limit).same is same


def test_nothing_matches_nothing():
    assert match_detections(detections(), detections(), **TOLERANCES).same


@pytest.mark.parametrize("tail", ["none", "tensor-nms"])
def test_raw_heads_on_onnx_runtime_equal_torch(exports, tail):
    path = exported(exports, tail)
    differences = raw_head_differences(small_detector(), path, [images(1), images(1, seed=1)])
    assert list(differences) == ["cls_logits", "bbox_regression"]
    assert 0 < max(differences.values()) <= 1e-4


@pytest.mark.parametrize("other", [(np.nan, 0, 0.0), (0.9, 0, np.nan)], ids=["score", "box"])
def test_what_is_no_number_is_neither_matched_nor_excused(other):
    report = match_detections(detections((0.9, 0, 0.0)), detections(other), **TOLERANCES)
    assert (report.matched, report.missing, report.extra) == (0, 1, 1)


def test_heads_that_are_no_numbers_never_pass(tmp_path):
    broken = copy.deepcopy(small_detector())
    nn.init.constant_(broken.head.regression_head.bbox_reg.bias, math.nan)
    path = export_detector(broken, INFO, tmp_path / "nan.onnx", GraphOptions("none"), provenance={})
    report = verify_export(small_detector(), INFO, path, NamedImages(images(1)))
    assert report.heads["bbox_regression"] == math.inf
    assert not report.passed


def test_raw_heads_alone_are_verified_without_detections(exports):
    heads = small_detector(), INFO, exported(exports, "none"), NamedImages(images(2))
    report = verify_export(*heads)
    assert (report.passed, report.match, report.images) == (True, None, 2)
    strict = Tolerances(head=1e-9)
    assert not verify_export(*heads, tolerances=strict).passed


def test_exported_detections_equal_torchvisions(exports):
    report = verify_export(small_detector(), INFO, exported(exports), NamedImages(images(6)))
    assert report.passed
    assert report.match.matched > 300
    assert report.match.excused <= 2
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["passed"], content["images"]) == (True, 6)
    assert content["worst"]["image"] in {"0", "1", "2", "3", "4", "5"}
    assert 0 < max(content["heads"].values()) < 1e-4


def test_export_of_other_weights_fails_parity(exports):
    other = INFO.build().eval()
    nn.init.constant_(other.head.classification_head.cls_logits.bias, 0.0)
    assert not verify_export(other, INFO, exported(exports), NamedImages(images(1))).passed


def test_a_file_that_is_no_export_is_explained(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not onnx")
    with pytest.raises(AdaptError, match=r"x.onnx is not a readable ONNX file"):
        verify_export(small_detector(), INFO, tmp_path / "x.onnx", NamedImages(images(1)))


def test_with_few_candidates_the_export_equals_its_own_modules_but_not_torchvision(tmp_path):
    info = replace(INFO, detector=replace(INFO.detector, nms_candidates=60))
    path = export_detector(small_detector(), info, tmp_path / "few.onnx", provenance={})
    arguments = small_detector(), info, path, NamedImages(images(2))
    assert not verify_export(*arguments).passed
    assert verify_export(*arguments, same_candidates=True).passed
