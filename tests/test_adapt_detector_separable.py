"""Pyramid and heads of depthwise separable convolutions: counted, mapped, measured, deployed."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from core_parts import random_architecture, shake, tiny
from export_parts import INFO, assert_detects_as_torchvision
from mapping_parts import IMAGES, UNSEEN
from torch import nn
from torchvision.models.detection import RetinaNet

from adapt.cost.units import madds, parse_key, rest_unit, unit_key
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector, count_parameters
from adapt.mapping.pretrained import Mapper
from adapt.mapping.principal import principal_detector
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from bench.latency.onnx_units import detector_model, random_inputs
from bench.latency.subject import WholeDetector
from export.run.onnx_session import ort_session

CONFIG = DetectorConfig(3, fpn_width=8, head_depth=1, separable=True)
HEADS = ["retinanet", "fcos"]


def detector(config: DetectorConfig, seed: int = 0) -> RetinaNet:
    model = build_detector(Backbone(random_architecture(tiny(), seed=0)), config)
    shake(model, seed)
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
def test_only_p6_and_p7_are_3x3_convolutions_over_all_channels(head: Any) -> None:
    config = replace(CONFIG, head=head, head_depth=2)
    model = detector(config)
    dense = [
        name
        for name, conv in model.named_modules()
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.groups == 1
    ]
    extra = "backbone.fpn.extra_blocks"
    assert dense == ["backbone.body.features.0.0", f"{extra}.p6", f"{extra}.p7"]


def test_multiply_adds_by_hand() -> None:
    cells = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]  # P3 to P7 of 64 x 96
    config = DetectorConfig(3, fpn_width=16, head_depth=2, separable=True)
    layer = 9 * 16 + 16 * 16 + 16
    smooth_and_p7 = layer * sum(cells[:3]) + (9 * 16 + 1) * 16 * cells[4]
    outputs = sum(9 * 16 + 16 + (16 + 1) * 9 * of for of in (3, 4)) * sum(cells)
    rest = rest_unit(config, InputSize(64, 96))
    assert madds(rest) == smooth_and_p7 + 2 * 2 * layer * sum(cells) + outputs
    assert unit_key(rest).endswith(" separable=1")
    assert parse_key(unit_key(rest)) == rest


@pytest.mark.parametrize("head", HEADS)
def test_heads_start_unsure_and_with_outputs_as_large_as_dense_ones(head: Any) -> None:
    found = []
    for separable in (True, False):
        torch.manual_seed(0)
        config = DetectorConfig(20, fpn_width=64, head_depth=2, head=head, separable=separable)
        model = build_detector(Backbone(random_architecture(tiny(), seed=0)), config)
        logits = model.head([torch.randn(1, 64, 32, 32)])["cls_logits"].detach()
        found.append((float(logits.mean()), float(logits.std())))
    (mean, deviation), (dense_mean, dense_deviation) = found
    assert mean == pytest.approx(dense_mean, abs=0.1)
    assert 0.4 < deviation / dense_deviation < 2.5


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_trained_separable_detector_is_copied_and_a_dense_one_is_not(head: Any) -> None:
    config = replace(CONFIG, head=head)
    source, target = detector(config), detector(config, seed=1)
    target.backbone.body.load_state_dict(source.backbone.body.state_dict())
    map_pyramid_and_heads(source, target, Mapper(0.0, torch.Generator()))
    image = torch.rand(2, 3, 64, 96)
    features = list(source.backbone(image).values())
    for name, outputs in target.head(list(target.backbone(image).values())).items():
        torch.testing.assert_close(outputs, source.head(features)[name])
    for one, other in ((True, False), (False, True)):
        source = detector(replace(config, separable=one))
        target = detector(replace(config, separable=other), seed=1)
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        mapper = Mapper(0.0, torch.Generator())
        map_pyramid_and_heads(source, target, mapper)
        for name, tensor in target.state_dict().items():
            if name.startswith(("head.", "backbone.fpn.layer_blocks.")):
                assert torch.equal(tensor, before[name])
                assert mapper.report.copied[name] == (0, tensor.numel())


@torch.no_grad()
def test_more_anchors_of_a_separable_head_start_as_their_nearest() -> None:
    source = detector(replace(CONFIG, anchor_scales=1))
    target = detector(CONFIG, seed=1)
    target.backbone.load_state_dict(source.backbone.state_dict())
    map_pyramid_and_heads(source, target, Mapper(0.0, torch.Generator()))
    features = list(source.backbone(torch.rand(2, 3, 64, 96)).values())
    ours, theirs = (m.head(features)["cls_logits"] for m in (target, source))
    ours, theirs = (logits.view(2, -1, 3, of, 3) for logits, of in ((ours, 3), (theirs, 1)))
    torch.testing.assert_close(ours, theirs.expand_as(ours))


@torch.no_grad()
def test_logits_are_the_same_in_principal_axes() -> None:
    model = detector(CONFIG).double()
    other = principal_detector(model, IMAGES)
    logits, expected = (
        m.head(list(m.backbone(UNSEEN).values()))["cls_logits"] for m in (other, model)
    )
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("tail", ["tensor-nms", "onnx-nms"])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_deployed_detections_equal_torchvisions(tail: Any, head: Any) -> None:
    config = replace(INFO.detector, separable=True, head=head, score_threshold=0.0)
    assert_detects_as_torchvision(replace(INFO, detector=config), tail)


def test_its_whole_graph_runs_in_onnx_runtime() -> None:
    network, size = random_architecture(tiny(), seed=0), InputSize(64, 96)
    graph = detector_model(WholeDetector(network, CONFIG, size), tail="onnx-nms")
    found = ort_session("ort-cpu", graph, 1).run(None, random_inputs(graph))
    assert [value.shape[0] for value in found] == [1] * 4


def test_it_has_fewer_parameters() -> None:
    separable, dense = (
        count_parameters(detector(replace(CONFIG, fpn_width=64, separable=one)))
        for one in (True, False)
    )
    assert separable < dense / 2
