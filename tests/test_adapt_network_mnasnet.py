import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import recipe_of
from core_parts import random_architecture, shake
from torch import Tensor, nn
from torchvision.models import MNASNet1_0_Weights, mnasnet1_0
from typer.testing import CliRunner

from adapt.architecture import mnasnet1_0 as architecture
from adapt.architecture import source_named
from adapt.data.coco import CocoSplit
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.network.mnasnet import from_mnasnet
from adapt.network.weights import PUBLISHED, source_backbone
from cli import app
from export.deploy import Deployment, deploy
from search.recipe.recipe import SpaceRecipe
from search.recipe.search_cost import madds_cost
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

IMAGE = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)).double()
TAPPED = (9, 11, 13)  # stacks of torchvision's layers that end at strides 8, 16 and 32
LAST = 14  # what follows the last stack


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """torchvision's network with random parameters and statistics."""
    torch.manual_seed(0)
    model = mnasnet1_0().double()
    shake(model, seed=0)
    return model.eval()


@pytest.fixture(scope="module")
def weights(reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes one."""
    file = tmp_path_factory.mktemp("weights") / "mnasnet.pth"
    torch.save(reference.float().state_dict(), file)
    reference.double()
    return file


@torch.no_grad()
def test_every_tap_and_the_logits_are_torchvisions(reference: nn.Module) -> None:
    backbone = Backbone(architecture()).double().eval()
    backbone.load_state_dict(from_mnasnet(reference.state_dict()), strict=True)
    found = list(backbone(IMAGE).values())
    x, expected = IMAGE, []
    for number, layer in enumerate(reference.layers):
        x = layer(x)
        if number in TAPPED:
            expected.append(x)
    for tap, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(tap, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    logits = reference.classifier(reference.layers[LAST:](found[-1]).mean((2, 3)))
    torch.testing.assert_close(logits, reference(IMAGE), rtol=1e-12, atol=1e-12)


def test_a_file_of_torchvision_is_read(weights: Path) -> None:
    backbone = source_backbone("mnasnet1_0", weights)
    stored = torch.load(weights, weights_only=True)
    assert torch.equal(backbone.features[0][0].weight, stored["layers.0.weight"])
    assert torch.equal(backbone.features[-1].conv[-1].bias, stored["layers.13.0.layers.7.bias"])


def without(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize("missing", ["layers.0.weight", "layers.10.2.layers.3.weight"])
def test_weights_that_lack_a_tensor_are_refused(
    missing: str, reference: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "other.pth"
    torch.save(without(reference.state_dict(), missing), file)
    with pytest.raises(AdaptError, match="do not fit mnasnet1_0; pass a state dict with the names"):
        source_backbone("mnasnet1_0", file)


def test_the_published_file_is_torchvisions() -> None:
    known, wanted = MNASNet1_0_Weights.IMAGENET1K_V1, PUBLISHED["mnasnet1_0"]
    assert wanted.url == known.url
    assert wanted.name == known.url.rpartition("/")[2]
    assert wanted.sha256 == Path(wanted.name).stem.rpartition("-")[2]
    assert source_named("mnasnet1_0") == architecture()


def test_a_network_of_its_space_is_searched_trained_and_deployed(
    weights: Path, tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    recipe = replace(
        recipe_of(tiny_space_file),
        init="imagenet",
        weights=str(weights),
        space=SpaceRecipe(preset="mnasnet1_0", width_grid=1000),
    ).changed({"finetune": {"mapping": "principal", "epochs": 1}}, "the test")
    steps = Session(limit_steps=2)
    run_search(recipe, tiny_data, madds_cost(recipe, 3), tmp_path, steps)
    chosen = random_architecture(recipe.space.load(), seed=1)
    path = tmp_path / "detector.safetensors"
    run_finetune(recipe, chosen, tiny_data, path, steps)
    model, info = load_detector(path)
    assert info.architecture == chosen
    activations = [m for m in model.backbone.body.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    assert {type(activation) for activation in activations} == {nn.ReLU}
    images = [tiny_data.images[0].path]
    deploy(path, tmp_path / "detector.onnx", Deployment(verify=images))
    deploy(path, tmp_path / "int8.onnx", Deployment(precision="int8", calibration=images))


RECIPE = """
name = "mnasnet"
weights = "{weights}"
data = {{ root = "{root}", workers = 0 }}
space = {{ preset = "mnasnet1_0" }}
input = {{ height = 64, width = 64 }}
detector = {{ fpn_width = 8, head_depth = 0 }}
finetune = {{ epochs = 1, batch_size = 4, warmup_steps = 0 }}
"""


def test_a_user_with_a_file_of_weights_finetunes_the_source(
    weights: Path, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "mnasnet.toml", tmp_path / "detector.safetensors"
    root = tiny_data.annotations.parents[1]
    recipe.write_text(RECIPE.format(weights=weights, root=root))
    command = ["finetune", str(recipe), "--arch", "mnasnet1_0", "--limit-steps", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["lost_variance"] == pytest.approx(
        {"C3": 0, "C4": 0, "C5": 0}, abs=1e-6
    )
    assert load_detector(out)[1].architecture == architecture()
