"""A pyramid that begins at P4 or P5 is the rest of one that begins at P3."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from core_parts import one_hot, random_architecture, random_choices, shake, tiny
from export_parts import INFO, assert_detects_as_torchvision
from mapping_parts import IMAGES, UNSEEN
from torchvision.models.detection import RetinaNet

from adapt.architecture import Choices
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.units import Lateral, boundaries, detector_units, madds, rest_unit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig, HeadKind
from adapt.detector.fcos import DistanceCoder, matched_cells
from adapt.detector.retinanet import anchor_generator, build_detector
from adapt.errors import AdaptError
from adapt.mapping.pretrained import Mapper
from adapt.mapping.principal import principal_detector
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.runtime import Tail
from bench.latency.onnx_units import detector_model, onnx_model, random_inputs
from bench.latency.subject import WholeDetector
from export.run.onnx_session import ort_session
from search.train.teacher import pyramid_loss

CONFIG = DetectorConfig(3, fpn_width=8, head_depth=1, proposals=50, box_width=16)
HEADS = get_args(HeadKind)
TAILS = ("tensor-nms", "onnx-nms")
COARSER = [pytest.param(level, id=f"P{level}") for level in (4, 5)]


def detector(config: DetectorConfig, seed: int = 0) -> RetinaNet:
    model = build_detector(Backbone(random_architecture(tiny(), seed=0)), config)
    shake(model, seed)
    return model.eval()


@pytest.mark.parametrize("finest", COARSER)
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_levels_that_both_have_are_mapped_and_say_the_same(finest: int, head: Any) -> None:
    config = replace(CONFIG, head=head)
    whole = detector(config)
    part = detector(replace(config, finest_level=finest), seed=1)
    part.backbone.body.load_state_dict(whole.backbone.body.state_dict())
    map_pyramid_and_heads(whole, part, Mapper(0.0, torch.Generator()))
    image = torch.rand(1, 3, 128, 160)
    ours, theirs = (list(model.backbone(image).values()) for model in (part, whole))
    assert len(ours) == 8 - finest
    for level, expected in zip(ours, theirs[finest - 3 :], strict=True):
        assert torch.equal(level, expected)
    for name, outputs in part.head(ours).items():
        expected = whole.head(theirs)[name][:, -outputs.shape[1] :]
        torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_finer_level_than_the_source_has_starts_anew() -> None:
    source, target = detector(replace(CONFIG, finest_level=4)), detector(CONFIG, seed=1)
    mapper = Mapper(0.0, torch.Generator())
    before = target.backbone.fpn.layer_blocks[0][0].weight.clone()
    map_pyramid_and_heads(source, target, mapper)
    assert torch.equal(target.backbone.fpn.layer_blocks[0][0].weight, before)
    assert mapper.report.copied["backbone.fpn.layer_blocks.0.0.weight"] == (0, before.numel())
    for ours, theirs in ((1, 0), (2, 1)):
        weights = (
            model.backbone.fpn.layer_blocks[place][0].weight
            for model, place in ((target, ours), (source, theirs))
        )
        assert torch.equal(*weights)


@pytest.mark.parametrize("finest", COARSER)
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_outputs_are_the_same_in_principal_axes(finest: int, head: Any) -> None:
    model = detector(replace(CONFIG, finest_level=finest, head=head)).double()
    other = principal_detector(model, IMAGES)
    for found, expected in zip(
        *(m.head(list(m.backbone(UNSEEN).values())).values() for m in (other, model)), strict=True
    ):
        # What is said of softmax or centerness is rounded to float32.
        least = 1e-5 if head in ("fcos", "ssdlite") else 1e-9
        torch.testing.assert_close(
            found, expected, rtol=0, atol=least * float(expected.abs().max())
        )


@pytest.mark.parametrize("finest", COARSER)
def test_the_smallest_anchor_is_on_the_finest_level(finest: int) -> None:
    config = replace(CONFIG, anchor_size=32, finest_level=finest, head="fcos")
    assert anchor_generator(config).sizes == tuple((32 * 2**n,) for n in range(8 - finest))


@pytest.mark.parametrize("side", [10, 60, 70, 500, 2000])
def test_fcos_learns_twice_as_large_boxes_in_twice_as_wide_cells(side: int) -> None:
    found = []
    for stride in (8, 16):
        cells = torch.cat(
            [
                stride * 2**level * torch.tensor([[3.0, 3.0, 5.0, 5.0], [4.0, 3.0, 6.0, 5.0]])
                for level in range(4)
            ]
        )
        middle, half = 4 * stride, side * stride / 16
        box = torch.tensor([[middle - half, middle - half, middle + half, middle + half]])
        found.append(matched_cells(box, cells, DistanceCoder(), stride))
    assert torch.equal(*found)


@pytest.mark.parametrize("finest", COARSER)
@pytest.mark.parametrize(
    ("head", "tail"),
    [(h, t) for h in HEADS for t in TAILS if (h, t) != ("faster-rcnn", "tensor-nms")],
)
@torch.no_grad()
def test_deployed_detections_equal_torchvisions(finest: int, tail: Any, head: Any) -> None:
    config = replace(INFO.detector, finest_level=finest, head=head, score_threshold=0.0)
    if head == "faster-rcnn":
        config = replace(config, proposals=200, box_width=64)
        if finest == 5:
            # RoIAlign makes boxes of less than a cell as large as one. In a corner their scores are
            # equal then, and it is chance which of them suppresses the other.
            config = replace(config, nms_threshold=1.0, detections=1000)
    assert_detects_as_torchvision(replace(INFO, detector=config), tail)


@pytest.mark.parametrize("finest", COARSER)
@pytest.mark.parametrize("head", HEADS)
def test_a_network_costs_what_its_units_cost(finest: int, head: Any) -> None:
    space, size = tiny(), InputSize(64, 96)
    config = replace(CONFIG, finest_level=finest, head=head)
    choices = random_choices(space, 1)
    units = list(detector_units(Choices.of(*choices).architecture(space), config, size))
    assert sum(isinstance(unit, Lateral) for unit in units) == 6 - finest
    detectors = DetectorSpace(space, config, size)
    assert set(units) <= set(detectors.units())
    cost = detectors.costs(madds).expected(*one_hot(space, choices), "exact")
    assert float(cost) == pytest.approx(sum(map(madds, units)), rel=1e-6)


@pytest.mark.parametrize(
    ("finest", "head"),
    [
        pytest.param(
            finest, head, id=f"{head}-P{finest}", marks=[pytest.mark.slow] if seldom else []
        )
        for number, head in enumerate(HEADS)
        for finest, seldom in ((4, number % 2), (5, not number % 2))
    ],
)
def test_its_parts_and_the_whole_run_where_latency_is_measured(finest: int, head: Any) -> None:
    size, config = InputSize(64, 96), replace(CONFIG, finest_level=finest, head=head)
    rest = rest_unit(config, size)
    assert [(b.height, b.width) for b in boundaries(rest)] == rest.levels[:-1]
    whole = WholeDetector(random_architecture(tiny(), 0), config, size)
    tail: Tail = "onnx-nms" if head == "faster-rcnn" else "tensor-nms"
    for model in (onnx_model(rest, tail=tail), detector_model(whole, tail=tail)):
        outputs = ort_session("ort-cpu", model, 1).run(None, random_inputs(model))
        assert outputs[0].shape == (1, 1)


def test_a_teacher_says_nothing_of_levels_that_it_lacks() -> None:
    torch.manual_seed(0)
    levels = {name: torch.rand(2, 4, 6, 6) for name in ("0", "1", "2", "p6", "p7")}
    coarser = {name: levels[name] for name in ("1", "2", "p6", "p7")}
    other = {name: torch.rand(2, 4, 6, 6) for name in levels}
    expected = pyramid_loss(coarser, {name: other[name] for name in coarser})
    torch.testing.assert_close(pyramid_loss(levels, {n: other[n] for n in coarser}), expected)
    torch.testing.assert_close(pyramid_loss(coarser, other), expected)


@pytest.mark.parametrize("level", [2, 6])
def test_a_level_without_a_tap_is_refused(level: int) -> None:
    with pytest.raises(AdaptError, match=f"finest_level must be one of 3, 4 and 5, got {level}"):
        replace(CONFIG, finest_level=level)
