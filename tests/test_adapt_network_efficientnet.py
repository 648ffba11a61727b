from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recipe_of
from core_parts import random_architecture
from PIL import Image
from torch import Tensor, nn

from adapt.data.coco import CocoSplit
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.mapping.principal import principal_source
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from adapt.network.efficientnet import from_efficientnet
from adapt.network.supernet import Supernet
from adapt.network.weights import find_local_weights, source_backbone
from adapt.sources import efficientnet_lite0
from adapt.space import SearchSpace
from export.deploy import Deployment, deploy
from search.recipe.recipe import SpaceRecipe
from search.train.finetune import run_finetune
from search.train.session import Session

SHARED = Path(__file__).parents[2] / "shared" / "data" / "tiny_coco"
SIDE = 224


@pytest.fixture(scope="module")
def published() -> Mapping[str, Tensor]:
    """The published tensors, with their own names."""
    file = find_local_weights("efficientnet_lite0")
    if file is None:
        pytest.skip("no weights of efficientnet_lite0 are installed")
    state: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


@pytest.fixture(scope="module")
def reference(published: Mapping[str, Tensor]) -> nn.Module:
    """Another implementation with the same tensors."""
    implementation = pytest.importorskip("efficientnet_lite_pytorch")
    model: nn.Module = implementation.EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(dict(published))
    return model.eval()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Tensor[8, 3, 224, 224] from 0 to 1 of real images."""
    files = sorted(SHARED.rglob("*.jpg"))[:8]
    if not files:
        pytest.skip("no real images beside the repository")
    images = [Image.open(file).convert("RGB").resize((SIDE, SIDE)) for file in files]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def unit(photos: Tensor) -> Tensor:
    """Return images as backbones of this tool take them."""
    mean, std = (torch.tensor(of)[:, None, None] for of in (IMAGE_MEAN, IMAGE_STD))
    return (photos - mean) / std


@torch.no_grad()
def test_it_keeps_the_logits_of_another_implementation(
    published: Mapping[str, Tensor], reference: nn.Module, photos: Tensor
) -> None:
    backbone = Backbone(efficientnet_lite0()).eval()
    state = from_efficientnet(published)
    # The published stem, for its padding is of another colour than that of converted images.
    state["features.0.0.weight"] = published["_conv_stem.weight"]
    state["features.0.1.running_mean"] = published["_bn0.running_mean"]
    backbone.load_state_dict(state, strict=True)
    # Padding below and on the right is that of the network turned by 180 degrees.
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight.flip(2, 3))
    images = (255 * photos - 127) / 128
    last = list(backbone(images.flip(2, 3)).values())[-1].flip(2, 3)
    head = reference._swish(reference._bn1(reference._conv_head(last)))
    logits = reference._fc(head.mean((2, 3)))
    torch.testing.assert_close(logits, reference(images), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_its_stem_takes_images_as_all_backbones_do(
    published: Mapping[str, Tensor], photos: Tensor
) -> None:
    backbone = source_backbone("efficientnet_lite0").eval()
    own, as_published = backbone.features[0], Backbone(efficientnet_lite0()).eval().features[0]
    as_published[0].weight.copy_(published["_conv_stem.weight"])
    as_published[1].load_state_dict(
        {name: published[f"_bn0.{name}"] for name in as_published[1].state_dict()}
    )
    inside = slice(1, -1)  # of the feature map: the padding's colour differs
    found, expected = own(unit(photos)), as_published((255 * photos - 127) / 128)
    torch.testing.assert_close(
        found[..., inside, inside], expected[..., inside, inside], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_padding_alike_on_all_sides_hardly_changes_what_it_knows(
    reference: nn.Module, photos: Tensor
) -> None:
    last = list(source_backbone("efficientnet_lite0").eval()(unit(photos)).values())[-1]
    head = reference._swish(reference._bn1(reference._conv_head(last)))
    found = reference._fc(head.mean((2, 3))).flatten()
    expected = reference((255 * photos - 127) / 128).flatten()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9


@torch.no_grad()
def test_principal_axes_keep_what_it_passes_on(
    published: Mapping[str, Tensor], photos: Tensor
) -> None:
    source = source_backbone("efficientnet_lite0").double().eval()
    images = unit(photos).double()[..., :128, :128]
    axes = principal_source(source, [images])
    for before, after in zip(source(images).values(), axes(images).values(), strict=True):
        rows, turned = (x.transpose(0, 1).flatten(1) for x in (before, after))
        gram = rows.T @ rows
        assert (turned.T @ turned - gram).norm() < 1e-9 * gram.norm()


def test_a_network_of_its_space_trains_and_deploys(
    published: Mapping[str, Tensor], tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    recipe = replace(
        recipe_of(tiny_space_file),
        init="imagenet",
        space=SpaceRecipe(preset="efficientnet_lite0"),
    ).changed(
        {
            "finetune": {"mapping": "principal", "epochs": 1},
            "detector": {"score_threshold": 0.001},  # so that there is something to compare
        },
        "the test",
    )
    architecture = random_architecture(recipe.space.load(), seed=1)
    path = tmp_path / "detector.safetensors"
    run_finetune(recipe, architecture, tiny_data, path, Session(limit_steps=2))
    model, info = load_detector(path)
    assert info.architecture == architecture
    norms = [m for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    deployment = Deployment(verify=[tiny_data.images[0].path])
    parity = deploy(path, tmp_path / "detector.onnx", deployment)["parity"]
    assert parity["match"]["matched"] > 0
    assert max(parity["heads"].values()) < 1e-4


def test_all_its_networks_have_its_batch_norms() -> None:
    space = SearchSpace.load("efficientnet_lite0").on_grid(1000)
    for network in (Backbone(efficientnet_lite0()), Supernet(space)):
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        assert norms
        assert {norm.eps for norm in norms} == {1e-3}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, file)
    with pytest.raises(AdaptError, match="do not fit efficientnet_lite0; pass a state dict with"):
        source_backbone("efficientnet_lite0", file)
