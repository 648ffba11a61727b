"""SSDLite in the frame of RetinaNet: its layers, loss, logits, costs and the whole way."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import recipe_of
from core_parts import half_precision_and_compiled, random_architecture, shake, tiny
from export_parts import awake, images
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import box_iou

from adapt.cost.units import detector_units, madds, parse_key, rest_unit, unit_key
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo, load_detector, save_detector
from adapt.detector.logits import object_logits
from adapt.detector.retinanet import build_detector, count_parameters
from adapt.errors import AdaptError
from adapt.mapping.pretrained import Mapper
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from adapt.runtime import Precision
from adapt.sources import mobilenet_v2
from bench.latency.subject import WholeDetector
from bench.latency.torch_units import torch_call
from export.deploy import Deployment, deploy
from export.engine.configure import BuildOptions
from search.recipe.optimisation import ComputeRecipe
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.placement import place
from search.train.session import Session
from search.train.world import World

SSDLITE = DetectorConfig(num_classes=3, fpn_width=16, head_depth=1, anchor_size=16, head="ssdlite")
SIZE = InputSize(128, 160)
OBJECT = {"boxes": torch.tensor([[20.0, 20.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
EMPTY = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def detector(config: DetectorConfig = SSDLITE, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_detector(Backbone(random_architecture(tiny(), seed=0)), config)


def test_the_head_without_towers_is_torchvisions() -> None:
    ours = detector(replace(SSDLITE, head_depth=0)).head.train()
    theirs = SSDLiteHead([16] * 5, [9] * 5, 4, nn.BatchNorm2d)
    theirs.load_state_dict(ours.state_dict())  # strict: same names, same shapes
    levels = [torch.rand(2, 16, size, size) for size in (8, 4, 3, 2, 2)]
    for name, outputs in theirs(levels).items():
        assert torch.equal(ours(levels)[name], outputs)


@pytest.mark.parametrize("scale", [0.1, 5.0, 60.0])
def test_the_sigmoid_of_an_objects_logit_is_its_softmax(scale: float) -> None:
    logits = scale * torch.randn(2, 50, 4)
    expected = logits.double().softmax(-1)[..., 1:]
    torch.testing.assert_close(
        object_logits(logits).double().sigmoid(), expected, rtol=1e-4, atol=2e-6
    )


def test_an_objects_logit_is_its_output_less_the_logsumexp_of_the_others() -> None:
    logits = torch.randn(1, 5, 4)
    others = torch.stack([logits[..., [0, 2, 3]], logits[..., [0, 1, 3]], logits[..., :3]], -2)
    expected = logits[..., 1:] - others.logsumexp(-1)
    torch.testing.assert_close(object_logits(logits), expected)


def losses_and_parts(model: nn.Module, targets: list[dict[str, Tensor]]) -> tuple:
    """The losses of random images, and what torchvision's loss needs to compute them."""
    images = torch.rand(len(targets), 3, SIZE.height, SIZE.width)
    found = model(list(images), targets)
    batch, _ = model.transform(list(images))
    levels = list(model.backbone(batch.tensors).values())
    return found, model.head(levels), model.anchor_generator(batch, levels)


def test_losses_are_torchvisions() -> None:
    model = detector().train()
    found, outputs, anchors = losses_and_parts(model, [OBJECT, EMPTY])
    iou = box_iou(OBJECT["boxes"], anchors[0])
    matched = [SSDMatcher(0.5)(iou), torch.full((len(anchors[1]),), -1)]
    assert int((matched[0] >= 0).sum()) > 1
    theirs = SSD(model.backbone, model.anchor_generator, (1, 1), 4, head=model.head)
    targets = [{**target, "labels": target["labels"] + 1} for target in (OBJECT, EMPTY)]
    expected = theirs.compute_loss(targets, outputs, anchors, matched)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-6)


def test_three_hardest_background_anchors_teach_for_one_on_an_object() -> None:
    model = detector().train()
    logits = torch.zeros(1, 20, 4)
    logits[0, 5:9, 2] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # background that looks like an object
    logits.requires_grad_()
    matched = torch.full((20,), -1)
    matched[0] = 0
    outputs = {"cls_logits": logits, "bbox_regression": torch.zeros(1, 20, 4, requires_grad=True)}
    anchors = [torch.tensor([[20.0, 20.0, 60.0, 70.0]]).expand(20, 4)]
    losses = model.head.compute_loss([OBJECT], outputs, anchors, [matched])
    losses["classification"].backward()
    learning = logits.grad.abs().sum(-1)[0].nonzero().flatten()
    assert learning.tolist() == [0, 6, 7, 8]
    assert losses["bbox_regression"] == 0


def test_anchors_on_crowds_are_neither_background_nor_object() -> None:
    model = detector().train()
    crowd = {**OBJECT, "crowds": torch.tensor([[80.0, 0.0, 160.0, 128.0]])}
    _, outputs, anchors = losses_and_parts(model, [crowd])
    logits = outputs["cls_logits"]
    logits.retain_grad()
    matched = model._matched(crowd, anchors[0])
    ignored = matched == -2
    assert ignored.any()
    logits.data[0, ignored, 2] += 20  # would be the hardest
    model.head.compute_loss([crowd], outputs, anchors, [matched])["classification"].backward()
    assert logits.grad[0, ignored].abs().max() == 0
    assert logits.grad[0, matched == -1].abs().max() > 0


@torch.no_grad()
def test_detections_are_those_of_torchvisions_ssd() -> None:
    config = replace(SSDLITE, score_threshold=0.0, candidates=10**6, detections=100)
    model = detector(config)
    shake(model, 0)
    for branch in (model.head.classification_head, model.head.regression_head):
        for block in branch.module_list:
            block[1].weight.mul_(3)  # hardly any ties
    image = torch.rand(3, SIZE.height, SIZE.width)
    (found,) = model.eval()([image])
    batch, _ = model.transform([image])
    levels = list(model.backbone(batch.tensors).values())
    model.head.training = True  # of the head alone: its BatchNorms stay in evaluation mode
    settings = SimpleNamespace(
        box_coder=model.box_coder,
        score_thresh=0.0,
        topk_candidates=10**6,
        nms_thresh=0.5,
        detections_per_img=100,
    )
    (expected,) = SSD.postprocess_detections(
        settings, model.head(levels), model.anchor_generator(batch, levels), batch.image_sizes
    )
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(found["labels"] + 1, expected["labels"])


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("finest", [3, 4, 5])
def test_parameters_are_those_of_its_layers(depth: int, finest: int) -> None:
    config = replace(SSDLITE, head_depth=depth, finest_level=finest)
    model, width, outputs = detector(config), 16, 9 * (4 + 4)
    taps = model.backbone.body.tap_widths
    depthwise, separable = 9 * width + 2 * width, 9 * width + width * width + 4 * width
    read = sum((c_in + 1) * width for c_in in taps[finest - 3 :])
    extra = (9 * taps[-1] + 1) * width + separable
    heads = 2 * depth * separable + 2 * depthwise + (width + 1) * outputs
    expected = read + extra + (8 - finest) * heads
    assert count_parameters(model) - count_parameters(model.backbone.body) == expected


def test_its_rest_has_a_key_of_its_own() -> None:
    unit = rest_unit(SSDLITE, SIZE)
    assert unit_key(unit).endswith("head=ssdlite")
    assert parse_key(unit_key(unit)) == unit


def test_all_but_its_rest_is_measured_once_for_all_heads() -> None:
    architecture = random_architecture(tiny(), seed=0)
    retinanet = replace(SSDLITE, head="retinanet")
    ours, theirs = (list(detector_units(architecture, of, SIZE)) for of in (SSDLITE, retinanet))
    assert ours[:-1] == theirs[:-1]  # cost tables of both have them
    assert madds(rest_unit(SSDLITE, SIZE)) < madds(rest_unit(retinanet, SIZE)) / 5


def test_a_trained_one_maps_onto_another_but_not_between_kinds() -> None:
    source, mapper = detector(seed=1), Mapper(0.0, torch.Generator())
    shake(source, 1)
    same = detector(seed=2)
    map_pyramid_and_heads(source, same, mapper, [(0, 2)])
    ours, theirs = (
        model.head.classification_head.module_list[2][1].weight.view(9, 4, 16)
        for model in (same, source)
    )
    assert torch.equal(ours[:, :2], theirs[:, [0, 3]])  # the background, and the class
    assert not torch.equal(ours[:, 2], theirs[:, 2])
    norms = [model.head.regression_head.towers[3][0][0][1] for model in (same, source)]
    for name, tensor in norms[0].state_dict().items():
        assert torch.equal(tensor, norms[1].state_dict()[name])
    other = detector(replace(SSDLITE, head="retinanet"), seed=3)
    before = other.head.regression_head.bbox_reg.weight.clone()
    map_pyramid_and_heads(source, other, mapper)
    assert torch.equal(other.head.regression_head.bbox_reg.weight, before)
    laterals = [model.backbone.fpn.inner_blocks[0][0].weight for model in (other, source)]
    assert torch.equal(*laterals)


def test_noise_reaches_the_surplus_of_a_wider_one_and_no_counter() -> None:
    source, wide = detector(seed=1), detector(replace(SSDLITE, fpn_width=24), seed=2)
    map_pyramid_and_heads(source, wide, Mapper(1e-3, torch.Generator()))
    norm = wide.head.classification_head.towers[0][0][0][1]
    assert norm.running_var.tolist() == [1] * 24
    assert 0 < norm.weight[16:].abs().max() < 0.01


def test_it_trains_and_its_deployed_file_detects_the_same(
    tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    changes = {"detector": {"head": "ssdlite", "anchor_size": 16}, "finetune": {"epochs": 2}}
    recipe = recipe_of(tiny_space_file).changed(changes, "the test")
    path = tmp_path / "ssdlite.safetensors"
    run_finetune(recipe, random_architecture(recipe.space.load(), 1), tiny_data, path, Session())
    for entry in read_log(path.with_suffix(".training.jsonl")):
        both = entry["classification"] + entry["bbox_regression"]
        assert entry["loss"] == pytest.approx(both, rel=1e-4)
    _, info = load_detector(path)
    assert info.detector.head == "ssdlite"
    onnx = tmp_path / "ssdlite.onnx"
    for tail in ("tensor-nms", "onnx-nms"):
        exported = deploy(path, onnx, Deployment(tail=tail, verify=[tiny_data.images[0].path]))
        assert exported["parity"]["match"]["matched"] > 0


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_its_deployed_file_becomes_an_engine(precision: Precision, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    info = DetectorInfo(random_architecture(tiny(), seed=0), SSDLITE, SIZE, ("a", "b", "c"))
    path, photo = tmp_path / "ssdlite.safetensors", tmp_path / "photo.png"
    save_detector(path, awake(info.build, SIZE), info)
    Image.fromarray(images(1)[0].transpose(1, 2, 0)).save(photo)
    how = Deployment(
        precision=precision,
        calibration=[photo] if precision == "int8" else (),
        verify=[photo],
        engine=BuildOptions(flavour="tensorrt_rtx"),
    )
    summary = deploy(path, tmp_path / "ssdlite.onnx", how)
    assert summary["layers"][precision] > 0.15


def test_its_rest_is_measured_in_pytorch_too() -> None:
    for subject in (rest_unit(SSDLITE, SIZE), WholeDetector(mobilenet_v2(), SSDLITE, SIZE)):
        torch_call(subject, 2, torch.device("cpu"), torch.float32)()


@half_precision_and_compiled
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_it_trains_in_half_precision_and_compiled(compute: ComputeRecipe) -> None:
    plain = detector().train()
    placed = place(deepcopy(plain), compute, World.alone())
    image = torch.rand(3, SIZE.height, SIZE.width)
    found, expected = (model([image] * 2, [OBJECT, EMPTY]) for model in (placed, plain))
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=0.01)
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in placed.parameters())


def test_one_image_whose_last_level_is_a_cell_is_refused_in_training() -> None:
    model, image = detector().train(), torch.rand(3, 128, 128)
    with pytest.raises(AdaptError, match=r"one cell in an input of up to 128x128.*two images"):
        model([image], [OBJECT])
    assert model.eval()([image])
    assert detector().train()([image, image], [OBJECT, EMPTY])["classification"] > 0
