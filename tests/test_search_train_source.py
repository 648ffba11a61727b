import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapt.architecture import mobilenet_v2
from adapt.data.coco import CocoSplit
from adapt.detector.file import DetectorInfo
from adapt.mapping.pretrained import MappingMode
from adapt.network.backbone import Backbone
from adapt.network.mixed import SharedBlock
from adapt.network.operations import MBConv
from adapt.network.weights import PUBLISHED, source_backbone
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
