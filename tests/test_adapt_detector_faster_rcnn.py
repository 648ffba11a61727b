"""Faster R-CNN in the frame of RetinaNet: its stages, loss, costs, mapping and the whole way."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import recipe_of
from core_parts import half_precision_and_compiled, random_architecture, shake, tiny
from export_parts import assert_detects_as_torchvision, awake, images
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionsFasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from adapt.artifacts import identity
from adapt.cost.counted import counted_madds
from adapt.cost.units import detector_units, madds, parse_key, rest_unit, unit_key
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.faster_rcnn import FasterRCNN
from adapt.detector.file import DetectorInfo, load_detector, save_detector
from adapt.detector.retinanet import build_detector, count_parameters
from adapt.errors import AdaptError
from adapt.mapping.pretrained import Mapper
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.sources import mobilenet_v2
from bench.latency.onnx_units import random_inputs, unit_model
from bench.latency.subject import WholeDetector
from bench.latency.torch_units import torch_call
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions
from export.graph.detector import DeployedDetector, export_detector
from export.graph.options import GraphOptions
from export.graph.pooling import pool_boxes
from export.run.inference import unit
from export.run.onnx_session import ort_session
from search.derive.held_out import held_out_loss
from search.recipe.optimisation import ComputeRecipe
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.placement import place
from search.train.session import Session
from search.train.world import World

CONFIG = DetectorConfig(
    num_classes=3,
    fpn_width=16,
    head_depth=1,
    anchor_size=16,
    candidates=60,
    head="faster-rcnn",
    proposals=50,
    box_width=32,
)
SIZE = InputSize(128, 160)
OBJECT = {"boxes": torch.tensor([[20.0, 20.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
CROWDED = {**EMPTY, "crowds": torch.tensor([[-999.0, -999.0, 999.0, 999.0]])}
INFO = DetectorInfo(random_architecture(tiny(), seed=0), CONFIG, SIZE, ("a", "b", "c"))


def detector(config: DetectorConfig = CONFIG, seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    model: FasterRCNN = build_detector(Backbone(random_architecture(tiny(), seed=0)), config)
    shake(model, seed)
    return model


def image(side: int = 0) -> Tensor:
    return torch.rand(3, side or SIZE.height, side or SIZE.width)


def torchvisions(model: FasterRCNN) -> TorchvisionsFasterRCNN:
    """torchvision's own detector around the same pyramid, with the same parameters."""
    theirs = TorchvisionsFasterRCNN(
        deepcopy(model.backbone),
        rpn_anchor_generator=model.anchor_generator,
        rpn_head=deepcopy(model.rpn.head),
        rpn_pre_nms_top_n_train=120,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=50,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], 7, 2),
        box_head=deepcopy(model.roi_heads.box_head),
        box_predictor=deepcopy(model.roi_heads.box_predictor),
        box_batch_size_per_image=50,
        box_score_thresh=0.05,
        box_nms_thresh=0.5,
        box_detections_per_img=100,
    )
    theirs.load_state_dict(model.state_dict())  # strict: same names, same shapes
    theirs.transform = model.transform
    return theirs.train(model.training)


def test_losses_are_torchvisions_with_the_same_parameters() -> None:
    model = detector().train()
    theirs, batch = torchvisions(model), [image(), image()]
    torch.manual_seed(1)  # of the boxes that are sampled
    found = model(batch, [OBJECT, EMPTY])
    torch.manual_seed(1)
    labelled = [{**target, "labels": target["labels"] + 1} for target in (OBJECT, EMPTY)]
    expected = theirs(batch, labelled)
    assert found["classification"] == expected["loss_classifier"] > 0
    assert found["bbox_regression"] == expected["loss_box_reg"] > 0
    assert found["objectness"] == expected["loss_objectness"] > 0
    assert found["proposal_regression"] == expected["loss_rpn_box_reg"] > 0


@torch.no_grad()
def test_detections_are_torchvisions_with_the_same_parameters() -> None:
    model = awake(INFO.build, SIZE)
    batch = [image(), image()]
    for found, expected in zip(model(batch), torchvisions(model)(batch), strict=True):
        assert len(found["scores"]) > 20
        assert torch.equal(found["labels"] + 1, expected["labels"])
        for name in ("boxes", "scores"):
            assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize(("depth", "finest", "side"), [(0, 3, 7), (2, 3, 5), (2, 4, 7), (0, 5, 7)])
def test_parameters_and_multiply_adds_are_those_of_its_layers(
    depth: int, finest: int, side: int
) -> None:
    config = replace(CONFIG, head_depth=depth, finest_level=finest, pooled_side=side)
    model, width, hidden = detector(config).eval(), 16, 32
    taps = model.backbone.body.tap_widths
    conv = (9 * width + 1) * width
    pyramid = sum((c_in + 1) * width for c_in in taps[finest - 3 :]) + (6 - finest) * conv
    extra = (9 * taps[-1] + 1) * width + conv
    first = depth * conv + (width + 1) * 9 * (1 + 4)
    pooled = side**2 * width
    second = (pooled + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * 4 * (1 + 4)
    expected = pyramid + extra + first + second
    assert count_parameters(model) - count_parameters(model.backbone.body) == expected
    cells = [16 * 20, 8 * 10, 4 * 5, 2 * 3, 1 * 2][finest - 3 :]
    smooth_and_p7 = (sum(cells[:-2]) + cells[-1]) * conv
    assert madds(rest_unit(config, SIZE)) == smooth_and_p7 + sum(cells) * first + 50 * second
    units = detector_units(random_architecture(tiny(), seed=0), config, SIZE)
    counted = counted_madds(model.to("meta"), SIZE)
    assert sum(map(madds, units)) == counted


def test_fewer_anchors_than_proposals_cost_as_many_boxes_as_there_are() -> None:
    few, size = replace(CONFIG, proposals=1000, candidates=20), InputSize(64, 64)
    more = replace(few, candidates=40)
    # 9 anchors per cell: of 64, 16, 4, 1 and 1 cells 20 + 20 + 20 + 9 + 9 and 40 + 40 + 36 + 18.
    second = (49 * 16 + 1) * 32 + 33 * 32 + 33 * 4 * 5
    difference = madds(rest_unit(more, size)) - madds(rest_unit(few, size))
    assert difference == (134 - 78) * second


def test_its_rest_has_a_key_of_its_own_and_no_others_key_changes() -> None:
    rest = rest_unit(CONFIG, SIZE)
    assert unit_key(rest).endswith("head=faster-rcnn proposals=50 box_width=32")
    assert parse_key(unit_key(rest)) == rest
    for head in ("retinanet", "fcos", "ssdlite"):
        names = identity(DetectorConfig(3, head=head)).keys()
        assert not names & {"proposals", "box_width", "pooled_side", "pooled_samples"}


@pytest.mark.parametrize(
    ("target", "side"),
    [(EMPTY, 0), (CROWDED, 0), (EMPTY, 40), (OBJECT | {"boxes": torch.ones(1, 4).cumsum(1)}, 40)],
    ids=["empty", "crowd everywhere", "empty and tiny", "object of a pixel in a tiny image"],
)
def test_losses_are_numbers_also_of(target: dict[str, Tensor], side: int) -> None:
    model = detector().train()
    losses = model([image(side)], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert all(found["scores"].isfinite().all() for found in model.eval()([image(side)]))


@pytest.mark.parametrize("target", [OBJECT, EMPTY], ids=["object", "empty"])
def test_without_proposals_losses_are_numbers_and_nothing_is_detected(
    target: dict[str, Tensor],
) -> None:
    model = detector().train()
    nn.init.constant_(model.rpn.head.bbox_pred.bias, -1e4)  # all boxes are points outside
    losses = model([image()], [target])
    assert all(loss.isfinite() for loss in losses.values())
    (found,) = model.eval()([image()])
    assert found["boxes"].shape == (0, 4)


def test_nothing_is_learned_on_crowds() -> None:
    model = detector().train()
    half = {**OBJECT, "crowds": torch.tensor([[80.0, 0.0, 160.0, 128.0]])}
    boxes = torch.tensor(
        [[90.0, 10.0, 120.0, 40.0], [20.0, 20.0, 60.0, 70.0], [0.0, 80.0, 30.0, 128.0]]
    )
    (labels,), _ = model.rpn.assign_targets_to_anchors([boxes], [half])
    assert labels.tolist() == [-1, 1, 0]
    (labels,), _ = model.rpn.assign_targets_to_anchors([boxes], [OBJECT])
    assert labels.tolist() == [0, 1, 0]
    assert model.roi_heads._apart(boxes, half).tolist() == boxes[1:].tolist()
    found = {**half, "crowds": torch.tensor([[0.0, 0.0, 160.0, 128.0]])}
    assert model.roi_heads._apart(boxes, found).tolist() == boxes[1:2].tolist()


def test_boxes_are_pooled_alike_whichever_image_came_first() -> None:
    fresh, used = detector().eval(), detector().eval()
    used([image(33)])  # its padding hides how wide cells are
    batch = [image()]
    with torch.no_grad():
        for name, found in used(batch)[0].items():
            assert torch.equal(found, fresh(batch)[0][name])


def test_held_out_losses_are_the_same_again_and_draw_nothing_from_the_run() -> None:
    model = detector()
    batch = [image() for _ in range(2)], [OBJECT, EMPTY]
    state = torch.get_rng_state()
    first, second = (held_out_loss(model, [batch], torch.device("cpu")) for _ in range(2))
    assert first == second > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_one_maps_onto_one_of_other_classes_and_widths() -> None:
    source, mapper = detector(seed=1), Mapper(0.0, torch.Generator())
    same = detector(replace(CONFIG, anchor_scales=1, box_width=24), seed=2)
    before = deepcopy(same.roi_heads.box_predictor.state_dict())
    map_pyramid_and_heads(source, same, mapper, [(0, 2)])
    ours, theirs = (m.roi_heads.box_predictor.cls_score.weight[:, :24] for m in (same, source))
    assert torch.equal(ours[:2], theirs[[0, 3]])  # the background, and the class
    assert torch.equal(ours[2:], before["cls_score.weight"][2:])
    ours, theirs = (
        m.roi_heads.box_predictor.bbox_pred.weight[:, :24].view(4, 4, 24) for m in (same, source)
    )
    assert torch.equal(ours[:2], theirs[[0, 3]])
    ours, theirs = (m.rpn.head.cls_logits.weight.view(3, -1, 16) for m in (same, source))
    assert torch.equal(ours[:, 0], theirs[:, 1])  # the one scale is the middle one of three
    assert torch.equal(
        same.roi_heads.box_head.fc6.weight, source.roi_heads.box_head.fc6.weight[:24]
    )


@pytest.mark.parametrize("side", [5, 9])
def test_what_reads_pooled_features_says_the_same_of_other_cells(side: int) -> None:
    source = detector(seed=1)
    target = detector(replace(CONFIG, pooled_side=side), seed=2)
    layers = [model.roi_heads.box_head.fc6 for model in (source, target)]
    with torch.no_grad():  # smooth weights, or cells between others know nothing of them
        layers[0].weight.copy_(
            torch.randn(len(layers[0].weight), 16, 1, 1).expand(-1, -1, 7, 7).flatten(1)
        )
    map_pyramid_and_heads(source, target, Mapper(0.0, torch.Generator()))
    features = torch.randn(6, 16, 1, 1)  # of boxes that are alike everywhere
    said = [
        layer(features.expand(-1, -1, cells, cells).flatten(1))
        for layer, cells in zip(layers, (7, side), strict=True)
    ]
    torch.testing.assert_close(*said, rtol=1e-3, atol=1e-3)


def test_between_one_and_two_stages_the_pyramid_alone_is_mapped() -> None:
    for heads in (("retinanet", "faster-rcnn"), ("faster-rcnn", "fcos")):
        source, target = (
            detector(replace(CONFIG, head=head), seed) for seed, head in enumerate(heads)
        )
        mapper, before = Mapper(0.0, torch.Generator()), deepcopy(target.state_dict())
        map_pyramid_and_heads(source, target, mapper)
        for name, tensor in target.state_dict().items():
            if name.startswith("backbone.fpn."):
                assert torch.equal(tensor, source.state_dict()[name])
            elif not name.startswith("backbone."):
                assert torch.equal(tensor, before[name])


@half_precision_and_compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_it_trains_in_half_precision_and_compiled(compute: ComputeRecipe) -> None:
    plain = detector().train()
    placed = place(deepcopy(plain), compute, World.alone())
    batch = [image()] * 2
    losses = []
    for model in (placed, plain):
        torch.manual_seed(0)
        losses.append(model(batch, [OBJECT, EMPTY]))
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name], rtol=0.1, atol=0.02)
    sum(losses[0].values()).backward()
    assert all(p.grad.isfinite().all() for p in placed.parameters())


@pytest.mark.parametrize("levels", [1, 3])
def test_each_box_is_pooled_as_torchvision_pools_it(levels: int) -> None:
    maps = [torch.rand(2, 4, 64 // 2**n, 80 // 2**n) for n in range(levels)]
    corners, sides = torch.rand(40, 2) * 300, torch.logspace(1, 2.75, 40)[:, None]
    boxes = torch.cat([corners, corners + sides], 1)[torch.randperm(40)]
    pool = MultiScaleRoIAlign([str(n) for n in range(levels)], 7, 2)
    expected = pool(
        {str(n): level for n, level in enumerate(maps)},
        [boxes[:25], boxes[25:]],
        [(512, 640)] * 2,
    )
    image_of = torch.tensor([0] * 25 + [1] * 15)
    level_of = pool.map_levels([boxes]) if levels > 1 else torch.zeros(40, dtype=torch.int64)
    assert len(level_of.unique()) == levels
    assert torch.equal(pool_boxes(maps, boxes, image_of, level_of, 3, 7, 2), expected)


@torch.no_grad()
def test_an_image_without_proposals_has_no_detections_in_the_graph_either() -> None:
    model = awake(INFO.build, SIZE)
    nn.init.constant_(model.rpn.head.bbox_pred.bias, -1e4)
    number, boxes, scores, _ = DeployedDetector(model, INFO, "onnx-nms")(image()[None])
    assert int(number) == 0
    assert not boxes.any()
    assert not scores.any()


@torch.no_grad()
def test_more_candidates_than_reach_suppression_are_ranked() -> None:
    config = replace(CONFIG, score_threshold=0.0)
    assert_detects_as_torchvision(replace(INFO, detector=config), "onnx-nms")


@pytest.fixture(scope="module")
def dynamic(made: Path) -> Path:
    options = GraphOptions("onnx-nms", batch=2, dynamic=True, pixels="uint8")
    path = made / "faster-rcnn.onnx"
    return export_detector(awake(INFO.build, SIZE), INFO, path, options, provenance={})


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_the_graph_detects_what_pytorch_does_in_any_number_of_images(
    number: int, dynamic: Path
) -> None:
    batch = images(number)
    found = ort_session("ort-cpu", dynamic.read_bytes(), 1).run(None, {"images": batch})
    with torch.no_grad():
        expected = awake(INFO.build, SIZE)(list(torch.from_numpy(unit(batch))))
    for count, boxes, scores, classes, of in zip(*found, expected, strict=True):
        assert count == len(of["scores"]) > 20
        np.testing.assert_allclose(boxes[: count[0]], of["boxes"], atol=1e-2)
        np.testing.assert_allclose(scores[: count[0]], of["scores"], atol=1e-5)
        assert classes[: count[0]].tolist() == of["labels"].tolist()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_its_rest_is_measured_with_the_boxes_of_a_whole_detector(precision: Any) -> None:
    model = unit_model(rest_unit(CONFIG, SIZE), precision=precision, tail="onnx-nms")
    inputs = random_inputs(model)
    number, *_ = ort_session("ort-cpu", model, 1).run(None, inputs)
    assert 0 < number.item() <= 50
    kinds = [node.op_type for node in onnx.load_from_string(model).graph.node]
    assert kinds.count("RoiAlign") == 3  # P3 to P5, each of its own boxes
    assert kinds.count("NonMaxSuppression") == 2


def test_its_rest_is_measured_in_pytorch_too() -> None:
    for subject in (rest_unit(CONFIG, SIZE), WholeDetector(mobilenet_v2(), CONFIG, SIZE)):
        torch_call(subject, 2, torch.device("cpu"), torch.float32)()


def test_it_trains_and_its_deployed_file_detects_the_same(
    tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    few = {"head": "faster-rcnn", "anchor_size": 16, "proposals": 40, "box_width": 16}
    few |= {"pooled_side": 5, "pooled_samples": 1}
    changes = {"detector": few, "finetune": {"epochs": 2}}
    recipe = recipe_of(tiny_space_file).changed(changes, "the test")
    path = tmp_path / "two-stage.safetensors"
    run_finetune(recipe, random_architecture(recipe.space.load(), 1), tiny_data, path, Session())
    names = ("objectness", "proposal_regression", "classification", "bbox_regression")
    for entry in read_log(path.with_suffix(".training.jsonl")):
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in names), rel=1e-4)
    _, info = load_detector(path)
    assert info.detector.head == "faster-rcnn"
    assert info.detector.proposals == 40
    how = Deployment(verify=[tiny_data.images[0].path])
    exported = deploy(path, tmp_path / "two-stage.onnx", how)
    assert exported["tail"] == "onnx-nms"
    assert exported["parity"]["match"]["matched"] > 0


ENGINE = BuildOptions(flavour="tensorrt_rtx")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"engine": ENGINE}, r"d\.safetensors has head 'faster-rcnn'.*not as a TensorRT engine"),
        ({"engine": ENGINE, "tail": "onnx-nms"}, "ONNX Runtime only, not as a TensorRT engine"),
        ({"tail": "tensor-nms"}, "ONNX Runtime only, not as tail 'tensor-nms'; leave out --trt"),
        ({"tail": "none"}, r"no graph ends in raw heads \(tail 'none'\); leave out --tail"),
    ],
)
def test_what_it_cannot_be_deployed_as_is_refused_before_the_work(
    how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "d.safetensors"
    save_detector(path, INFO.build(), INFO)
    with pytest.raises(AdaptError, match=message):
        deploy(path, tmp_path / "d.onnx", Deployment(**how))
    assert not (tmp_path / "d.onnx").exists()


@pytest.mark.parametrize("tail", ["tensor-nms", "none"])
def test_no_graph_is_written_with_another_tail(tail: Any, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=f"has head 'faster-rcnn'.*tail '{tail}'"):
        export_detector(INFO.build(), INFO, tmp_path / "d", GraphOptions(tail), provenance={})


FASTER = {"detector": {"head": "faster-rcnn"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": {"proposals": 0}}, r"detector\.proposals must be at least 1, got 0"),
        (
            {"detector": {"pooled_samples": 0}},
            r"detector\.pooled_samples must be at least 1, got 0",
        ),
        ({"detector": {"pooled_side": 65}}, r"detector\.pooled_side must be at most 64, got 65"),
        ({"detector": {"box_width": 2**17}}, r"detector\.box_width must be at most 65536"),
        (
            {"detector": {"head": "faster-rcnn", "separable": True}},
            r"detector\.separable is of retinanet and fcos; leave it out with head 'faster-rcnn'",
        ),
        (
            {**FASTER, "device": {"runtime": "tensorrt"}},
            r"device\.runtime is 'tensorrt'; set it to 'ort-cpu' or 'ort-cuda'",
        ),
        (
            {"joint": {"head": ["faster-rcnn", "fcos"]}, "device": {"runtime": "tensorrt"}},
            r"joint\.head 'faster-rcnn' is deployed in ONNX Runtime only",
        ),
    ],
)
def test_a_recipe_that_asks_for_more_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Recipe().changed(changes, "the test")


def test_a_recipe_for_onnx_runtime_is_not_given_to_tensorrt() -> None:
    recipe = Recipe().changed({**FASTER, "device": {"runtime": "ort-cuda"}}, "the test")
    with pytest.raises(AdaptError, match="deployed in ONNX Runtime only"):
        recipe.with_device(runtime="tensorrt")
