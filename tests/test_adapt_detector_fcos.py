import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import recipe_of
from core_parts import random_architecture, tiny
from torch import Tensor
from torchvision.models.detection.fcos import FCOSHead as TorchvisionHead

from adapt.cost.units import detector_units, madds, parse_key, rest_unit, unit_key
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.fcos import DistanceCoder, centerness_of, matched_cells, mean_logit
from adapt.detector.file import load_detector
from adapt.detector.retinanet import anchor_generator, build_detector
from adapt.errors import AdaptError
from adapt.mapping.pretrained import Mapper
from adapt.mapping.trained import map_pyramid_and_heads
from adapt.network.backbone import Backbone
from export.deploy import Deployment, deploy
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.session import Session

FCOS = DetectorConfig(num_classes=3, fpn_width=16, head_depth=1, anchor_size=16, head="fcos")
SIZE = InputSize(128, 160)


def detector(config: DetectorConfig = FCOS, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_detector(Backbone(random_architecture(tiny(), seed=0)), config)


def squares() -> Tensor:
    """Of five levels of an image of 256x256."""
    levels = [8 * 2**level for level in range(5)]
    found = []
    for stride in levels:
        places = torch.arange(0, 256, stride).float()
        y, x = torch.meshgrid(places, places, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).view(-1, 4)
        found.append(centres + stride * torch.tensor([-1.0, -1.0, 1.0, 1.0]))
    return torch.cat(found)


def test_cells_around_the_centre_learn_a_box_on_the_level_of_its_size() -> None:
    box = torch.tensor([[32.0, 32.0, 64.0, 64.0]])  # its centre is 48, 48
    cells = squares()
    matched = matched_cells(box, cells, DistanceCoder())
    centres = (cells[matched == 0, :2] + cells[matched == 0, 2:]) / 2
    # Squares of P3 have a side of 16: cells at most 32 from the farthest side learn it there, and
    # those that are nearer than 1.5 strides of 8 to its centre.
    assert {tuple(centre) for centre in centres.tolist()} == {
        (float(x), float(y)) for x in (40, 48, 56) for y in (40, 48, 56)
    }


@pytest.mark.parametrize(("side", "level"), [(10, 0), (60, 0), (70, 1), (500, 3), (2000, 4)])
def test_a_box_is_learned_on_one_level_where_its_far_sides_are_alike(side: int, level: int) -> None:
    box = torch.tensor([[128 - side / 2, 128 - side / 2, 128 + side / 2, 128 + side / 2]])
    cells = squares()
    at_centre = ((cells[:, :2] + cells[:, 2:]) / 2 == 128).all(1)
    matched = matched_cells(box, cells, DistanceCoder())
    sizes = (cells[:, 2] - cells[:, 0])[(matched == 0) & at_centre]
    assert sizes.tolist() == [16 * 2**level]


def test_of_boxes_around_each_other_the_smaller_is_learned() -> None:
    boxes = torch.tensor([[30.0, 30.0, 66.0, 66.0], [40.0, 40.0, 56.0, 56.0]])
    cells = squares()
    matched = matched_cells(boxes, cells, DistanceCoder())
    centre = ((cells[:, :2] + cells[:, 2:]) / 2 == 48).all(1)
    assert matched[centre & (matched >= 0)].tolist() == [1]


def test_without_boxes_all_is_background() -> None:
    assert (matched_cells(torch.zeros(0, 4), squares(), DistanceCoder()) == -1).all()


def test_centerness_is_that_of_the_paper() -> None:
    distances = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 4.0, 2.0]])
    assert centerness_of(distances).tolist() == pytest.approx([1.0, math.sqrt(1 / 4)])


@pytest.mark.parametrize("classes", [-30.0, -2.0, 0.5, 8.0, 40.0])
@pytest.mark.parametrize("centerness", [-30.0, 0.0, 40.0])
def test_one_logit_says_the_geometric_mean(classes: float, centerness: float) -> None:
    logits = torch.tensor([[[classes]]]), torch.tensor([[[centerness]]])
    expected = (logits[0].double().sigmoid() * logits[1].double().sigmoid()).sqrt()
    found = mean_logit(*logits).sigmoid().double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)


def test_losses_are_torchvisions() -> None:
    model = detector().train()
    images = torch.rand(2, 3, SIZE.height, SIZE.width)
    targets = [
        {"boxes": torch.tensor([[20.0, 20.0, 60.0, 70.0]]), "labels": torch.tensor([1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    found = model(list(images), targets)
    batch, _ = model.transform(list(images))
    pyramid = list(model.backbone(batch.tensors).values())
    outputs = model.head(pyramid)
    anchors = model.anchor_generator(batch, pyramid)
    matched = [model._matched(target, a) for target, a in zip(targets, anchors, strict=True)]
    assert sum(int((of >= 0).sum()) for of in matched) > 3
    theirs = TorchvisionHead(16, 1, 3, num_convs=0)
    expected = theirs.compute_loss(targets, outputs, anchors, matched)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        # BatchNorm's running statistics play no role in training mode.
        torch.testing.assert_close(found[name], loss, rtol=1e-4, atol=1e-6)


def test_cells_on_crowds_are_neither_background_nor_object() -> None:
    model = detector().train()
    image = [torch.rand(3, SIZE.height, SIZE.width)]
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    alone = model(image, [target])
    crowd = {**target, "crowds": torch.tensor([[0.0, 0.0, 160.0, 64.0]])}
    ignored = model(image, [crowd])
    assert 0 < ignored["classification"].item() < 0.7 * alone["classification"].item()


def test_outputs_are_an_eighth_of_retinanets_and_are_counted() -> None:
    architecture = random_architecture(tiny(), seed=0)
    for config in (FCOS, replace(FCOS, head="retinanet")):
        model, counted = detector(config).eval(), 0

        def count(module: torch.nn.Module, _: object, out: Tensor) -> None:
            nonlocal counted
            assert isinstance(module, torch.nn.Conv2d)
            c_in = module.in_channels // module.groups
            taps = module.kernel_size[0] * module.kernel_size[1] * c_in
            counted += (taps + (module.bias is not None)) * out[0].numel()

        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        with torch.no_grad():
            pyramid = model.backbone(torch.zeros(1, 3, SIZE.height, SIZE.width))
            model.head(list(pyramid.values()))
        assert counted == sum(map(madds, detector_units(architecture, config, SIZE)))
    assert FCOS.anchors_per_cell == 1
    assert anchor_generator(FCOS).num_anchors_per_location() == [1] * 5


def test_its_rest_has_a_key_of_its_own() -> None:
    unit = rest_unit(FCOS, SIZE)
    assert parse_key(unit_key(unit)) == unit
    other = rest_unit(replace(FCOS, head="retinanet"), SIZE)
    assert "head=" not in unit_key(other)  # cost tables of earlier versions keep their rows
    assert parse_key(unit_key(other)) == other
    with pytest.raises(ValueError, match="'ssd' is none of retinanet, fcos, ssdlite, faster-rcnn"):
        parse_key(unit_key(unit).replace("head=fcos", "head=ssd"))


def test_a_trained_one_maps_onto_another_but_not_between_kinds() -> None:
    source, report = detector(seed=1), Mapper(0.0, torch.Generator())
    same = detector(replace(FCOS, head_depth=0), seed=2)
    map_pyramid_and_heads(source, same, report, [(0, 2)])
    for part in ("regression_head.bbox_reg", "regression_head.bbox_ctrness"):
        assert torch.equal(
            same.head.state_dict()[f"{part}.weight"], source.head.state_dict()[f"{part}.weight"]
        )
    logits = [model.head.classification_head.cls_logits.weight for model in (same, source)]
    assert torch.equal(logits[0][0], logits[1][2])
    assert not torch.equal(logits[0][1], logits[1][1])
    other = detector(replace(FCOS, head="retinanet"), seed=3)
    before = other.head.regression_head.bbox_reg.weight.clone()
    map_pyramid_and_heads(source, other, report)
    assert torch.equal(other.head.regression_head.bbox_reg.weight, before)
    towers = [model.head.regression_head.conv[0][0].weight for model in (other, source)]
    assert torch.equal(*towers)


def test_it_trains_and_its_deployed_file_detects_the_same(
    tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    changes = {"detector": {"head": "fcos", "anchor_size": 16}, "finetune": {"epochs": 2}}
    recipe = recipe_of(tiny_space_file).changed(changes, "the test")
    path = tmp_path / "fcos.safetensors"
    run_finetune(recipe, random_architecture(recipe.space.load(), 1), tiny_data, path, Session())
    entries = read_log(path.with_suffix(".training.jsonl"))
    names = "classification", "bbox_regression", "bbox_ctrness"
    for entry in entries:
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in names), rel=1e-4)
    _, info = load_detector(path)
    assert info.detector.head == "fcos"
    onnx = tmp_path / "fcos.onnx"
    for tail in ("tensor-nms", "onnx-nms"):
        exported = deploy(path, onnx, Deployment(tail=tail, verify=[tiny_data.images[0].path]))
        assert exported["parity"]["match"]["matched"] > 0


def test_squares_that_would_have_no_size_are_refused() -> None:
    with pytest.raises(AdaptError, match="anchor_size of fcos must be at least 2, got 1"):
        replace(FCOS, anchor_size=1)


def test_another_head_is_refused() -> None:
    with pytest.raises(
        AdaptError,
        match=r"detector\.head must be one of retinanet, fcos, ssdlite, faster-rcnn; got 'ssd'",
    ):
        replace(FCOS, head="ssd")  # type: ignore[arg-type]
