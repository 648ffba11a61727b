import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapt.data.coco import CocoSplit
from adapt.detector.file import DetectorInfo, load_detector, save_detector
from adapt.mapping.pretrained import MappingMode
from adapt.network.backbone import Backbone
from adapt.network.mixed import SharedBlock
from adapt.network.operations import MBConv
from adapt.network.weights import PUBLISHED, source_backbone
from adapt.sources import mobilenet_v2
from search.recipe.recipe import Recipe, SpaceRecipe
from search.supernet.bilevel import build_supernet
from search.train.finetune import initial_detector
from search.train.source import map_source, mapped_source


@pytest.fixture
def recipe(tiny_recipe: Recipe) -> Recipe:
    wanted = PUBLISHED["mobilenet_v2"]
    if importlib.util.find_spec(wanted.module) is None:
        pytest.skip(f"{wanted.package} is not installed")
    return replace(tiny_recipe, init="imagenet", space=SpaceRecipe(width_grid=1000))


def mapping(recipe: Recipe, mode: MappingMode) -> Recipe:
    return replace(recipe, finetune=replace(recipe.finetune, mapping=mode))


def projection(op: torch.nn.Module) -> Tensor:
    assert isinstance(op, MBConv)
    weight = op.conv[-2].weight
    assert isinstance(weight, Tensor)
    return weight


@pytest.mark.parametrize(("mode", "rotated"), [("paper", False), ("refit", True)])
def test_source_is_rotated_if_the_recipe_maps_so(
    mode: MappingMode, rotated: bool, recipe: Recipe, tiny_data: CocoSplit
) -> None:
    source = mapped_source(mapping(recipe, mode), "mobilenet_v2", tiny_data)
    published = source_backbone("mobilenet_v2")
    same = torch.equal(projection(source.features[2]), projection(published.features[2]))
    assert same != rotated


def test_search_and_finetuning_map_the_same_source(recipe: Recipe, tiny_data: CocoSplit) -> None:
    recipe = mapping(recipe, "principal")
    info = DetectorInfo(mobilenet_v2(), recipe.detector_config(3), recipe.input, ("a", "b", "c"))
    model, _ = initial_detector(recipe, info, tiny_data)
    supernet = build_supernet(recipe, recipe.space.load(), tiny_data)
    body, block = model.backbone.body, supernet.blocks[0]
    assert isinstance(body, Backbone)
    assert isinstance(block, SharedBlock)
    wanted = projection(body.features[2])
    for op in block.chains()[0][0].ops:
        found = projection(op)
        common = min(found.shape[1], wanted.shape[1])
        assert torch.equal(found[:24, :common], wanted[:, :common])


def test_principal_axes_lose_less_than_the_first_channels_and_fitted_projections_least(
    recipe: Recipe, tiny_data: CocoSplit
) -> None:
    source, few = mobilenet_v2(), tiny_data.subset([image.id for image in tiny_data.images[:4]])
    halves = tuple(replace(block, width=block.width // 2) for block in source.blocks)
    lost = {}
    modes: tuple[MappingMode, ...] = ("paper", "principal", "refit")
    for mode in modes:
        body = Backbone(replace(source, blocks=halves))
        lost[mode] = map_source(mapping(recipe, mode), body, few).lost_variance["C3"]
    assert lost["refit"] < lost["principal"] < lost["paper"]


def test_searches_of_other_axes_are_other_searches(tiny_recipe: Recipe) -> None:
    assert mapping(tiny_recipe, "identity").search_hash == tiny_recipe.search_hash
    principal, refit = (mapping(tiny_recipe, mode).search_hash for mode in ("principal", "refit"))
    assert principal == refit != tiny_recipe.search_hash


@pytest.fixture
def trained_file(tmp_path: Path, recipe: Recipe, tiny_data: CocoSplit) -> Path:
    """A detector of the recipe whose weights are not the pretrained ones."""
    path = tmp_path / "start.safetensors"
    info = DetectorInfo(
        mobilenet_v2(), recipe.detector_config(3), recipe.input, tiny_data.class_names
    )
    model, _ = initial_detector(mapping(recipe, "paper"), info, tiny_data)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    save_detector(path, model, info)
    return path


@pytest.mark.parametrize("mode", ["paper", "principal"])
@torch.no_grad()
def test_a_detector_starts_from_the_function_of_a_trained_one(
    mode: MappingMode, recipe: Recipe, tiny_data: CocoSplit, trained_file: Path
) -> None:
    expected, info = load_detector(trained_file)
    few = tiny_data.subset([image.id for image in tiny_data.images[:4]])
    started, report = initial_detector(mapping(recipe, mode), info, few, trained_file)
    assert report
    assert report.share == 1.0
    assert max(report.lost_variance.values()) < 1e-6
    if mode == "paper":
        images = [torch.rand(3, 64, 64)]
        for name, value in expected(images)[0].items():
            torch.testing.assert_close(started.eval()(images)[0][name], value)


def test_a_narrower_detector_starts_with_the_first_axes_of_a_trained_one(
    recipe: Recipe, tiny_data: CocoSplit, trained_file: Path
) -> None:
    expected, info = load_detector(trained_file)
    source = mobilenet_v2()
    halves = tuple(replace(block, width=block.width // 2) for block in source.blocks)
    narrow = replace(info, architecture=replace(source, blocks=halves))
    few = tiny_data.subset([image.id for image in tiny_data.images[:4]])
    lost = {}
    modes: tuple[MappingMode, ...] = ("paper", "principal")
    for mode in modes:
        started, report = initial_detector(mapping(recipe, mode), narrow, few, trained_file)
        assert report
        lost[mode] = report.lost_variance["C3"]
        for name, value in expected.head.state_dict().items():
            assert torch.equal(started.head.state_dict()[name], value)
    assert lost["principal"] < lost["paper"]


def test_classes_are_matched_by_name_and_new_ones_start_anew(
    recipe: Recipe, tiny_data: CocoSplit, trained_file: Path
) -> None:
    trained, info = load_detector(trained_file)
    first, second, third = info.classes
    other = replace(
        info, classes=(third, "new", first, "newer"), detector=recipe.detector_config(4)
    )
    few = tiny_data.subset([image.id for image in tiny_data.images[:4]])
    started, report = initial_detector(recipe, other, few, trained_file)
    fresh, _ = initial_detector(recipe, other, few)
    assert report
    assert report.new_classes == ("new", "newer")
    name = "cls_logits.weight"
    heads = [m.head.classification_head.state_dict()[name] for m in (started, trained, fresh)]
    ours, old, new = (rows.unflatten(0, (9, -1)) for rows in heads)  # 9 anchors
    assert torch.equal(ours[:, [0, 2]], old[:, [2, 0]])
    assert torch.equal(ours[:, [1, 3]], new[:, [1, 3]])
    copied, elements = report.copied[f"head.classification_head.{name}"]
    assert copied == elements / 2
    boxes = [m.head.regression_head.bbox_reg.weight for m in (started, trained)]
    assert torch.equal(*boxes)
    assert second in info.classes


def test_fewer_anchors_start_as_those_of_the_nearest_scale(
    recipe: Recipe, tiny_data: CocoSplit, trained_file: Path
) -> None:
    trained, info = load_detector(trained_file)
    few = tiny_data.subset([image.id for image in tiny_data.images[:4]])
    for scales, nearest in ((1, [1]), (2, [0, 2])):
        config = replace(info.detector, anchor_scales=scales)
        started, _ = initial_detector(recipe, replace(info, detector=config), few, trained_file)
        for branch, layer in (
            ("classification_head", "cls_logits"),
            ("regression_head", "bbox_reg"),
        ):
            for kind in ("weight", "bias"):
                had, has = (
                    getattr(getattr(model.head, branch), layer).state_dict()[kind]
                    for model in (trained, started)
                )
                by_scale = had.unflatten(0, (3, 3, -1))  # shapes, scales, outputs
                assert torch.equal(has.unflatten(0, (3, scales, -1)), by_scale[:, nearest])


@pytest.mark.parametrize(("depth", "width"), [(0, 8), (3, 8), (1, 4), (2, 16)])
def test_other_heads_start_with_what_both_have(
    depth: int, width: int, recipe: Recipe, tiny_data: CocoSplit, trained_file: Path
) -> None:
    trained, info = load_detector(trained_file)
    config = replace(info.detector, head_depth=depth, fpn_width=width)
    few = tiny_data.subset([image.id for image in tiny_data.images[:4]])
    started, report = initial_detector(recipe, replace(info, detector=config), few, trained_file)
    assert report
    common = min(width, info.detector.fpn_width)
    for name in ("classification_head", "regression_head"):
        had, has = (getattr(model.head, name).conv for model in (trained, started))
        for one, other in zip(had[:depth].parameters(), has.parameters(), strict=False):
            part = tuple(slice(min(common, n)) for n in one.shape[:2])
            assert torch.equal(other[part], one[part])
    new = {name for name, (copied, _) in report.copied.items() if not copied}
    added = range(info.detector.head_depth, depth)
    assert {int(name.split("conv.")[1][0]) for name in new} == set(added)
    logits = started.head.classification_head.cls_logits.weight
    wanted = trained.head.classification_head.cls_logits.weight
    assert torch.equal(logits[:, :common], wanted[:, :common])
