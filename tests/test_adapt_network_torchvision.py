"""Sources of torchvision that need other names compute what torchvision's networks compute."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import recipe_of
from core_parts import random_architecture, shake
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import (
    MNASNet1_0_Weights,
    MobileNet_V3_Large_Weights,
    ResNet50_Weights,
    WeightsEnum,
    mnasnet1_0,
    mobilenet_v3_large,
    resnet50,
)
from typer.testing import CliRunner

from adapt.cost.units import OperationUnit, Stem, detector_units, madds
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import load_detector
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.network.weights import PUBLISHED, source_backbone
from adapt.sources import source_named
from adapt.traits import traits_of
from cli import app
from export.deploy import Deployment, deploy
from search.recipe.recipe import SpaceRecipe
from search.recipe.search_cost import madds_cost
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.session import Session

IMAGE = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)).double()


@dataclass(frozen=True)
class Known:
    """What torchvision has of a source.

    Attributes:
        build: Its network.
        layers: Returns its layers in order.
        tapped: Places of the layers that end at strides 8, 16 and 32.
        weights: Its published parameters.
        missing: A tensor that a backbone needs.
    """

    build: Callable[[], nn.Module]
    layers: Callable[[nn.Module], nn.Sequential]
    tapped: tuple[int, ...]
    weights: WeightsEnum
    missing: str
    classifier: str = "classifier"


def resnet_layers(model: nn.Module) -> nn.Sequential:
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(*(model.get_submodule(name) for name in names))


KNOWN = {
    "mnasnet1_0": Known(
        mnasnet1_0,
        lambda model: model.layers,
        (9, 11, 13),
        MNASNet1_0_Weights.IMAGENET1K_V1,
        "layers.10.2.layers.3.weight",
    ),
    "mobilenet_v3_large": Known(
        mobilenet_v3_large,
        lambda model: model.features,
        (6, 12, 15),
        MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        "features.4.block.2.fc1.bias",
    ),
    "resnet50": Known(
        resnet50,
        resnet_layers,
        (5, 6, 7),
        ResNet50_Weights.IMAGENET1K_V1,
        "layer2.0.downsample.0.weight",
        "fc",
    ),
}


# The supernet around ResNet-50 has 219 million parameters; a small one is in
# test_bench_pipeline_bottlenecks.py.
SLOW_WHERE_LARGE = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "resnet50" else []) for name in KNOWN],
    indirect=True,
)


@pytest.fixture(scope="module", params=KNOWN)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(name: str) -> nn.Module:
    """torchvision's network with random parameters and statistics."""
    torch.manual_seed(0)
    model = KNOWN[name].build().double()
    shake(model, seed=0)
    return model.eval()


@pytest.fixture(scope="module")
def weights(name: str, reference: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision publishes one."""
    file = tmp_path_factory.mktemp("weights") / f"{name}.pth"
    torch.save({key: tensor.float() for key, tensor in reference.state_dict().items()}, file)
    return file


@torch.no_grad()
def test_every_tap_and_the_logits_are_torchvisions(name: str, reference: nn.Module) -> None:
    backbone = Backbone(source_named(name)).double().eval()
    state = PUBLISHED[name].convert(reference.state_dict())
    needed = backbone.state_dict().keys()
    backbone.load_state_dict({key: t for key, t in state.items() if key in needed}, strict=True)
    found = list(backbone(IMAGE).values())
    layers, tapped = KNOWN[name].layers(reference), KNOWN[name].tapped
    x, expected = IMAGE, []
    for number, layer in enumerate(layers):
        x = layer(x)
        if number in tapped:
            expected.append(x)
    for tap, wanted in zip(found, expected, strict=True):
        assert float(wanted.std()) > 1e-3
        torch.testing.assert_close(tap, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    classifier = reference.get_submodule(KNOWN[name].classifier)
    logits = classifier(layers[tapped[-1] + 1 :](found[-1]).mean((2, 3)))
    torch.testing.assert_close(logits, reference(IMAGE), rtol=1e-12, atol=1e-12)


def test_a_file_of_torchvision_is_read(name: str, reference: nn.Module, weights: Path) -> None:
    backbone = source_backbone(name, weights).eval().double()
    x = KNOWN[name].layers(reference)[: KNOWN[name].tapped[-1] + 1](IMAGE)
    torch.testing.assert_close(backbone(IMAGE)["2"], x, rtol=1e-4, atol=1e-4)


def test_multiply_adds_are_those_of_torchvisions_layers(name: str) -> None:
    """Counted by PyTorch on torchvision's network, with the biases that its counter leaves out."""
    layers = KNOWN[name].layers(KNOWN[name].build())[: KNOWN[name].tapped[-1] + 1].eval()
    biases = 0

    def add(conv: nn.Module, inputs: object, out: Tensor) -> None:
        nonlocal biases
        biases += out.numel() if conv.bias is not None else 0

    for module in layers.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter:
        layers(IMAGE[:1].float())
    units = detector_units(source_named(name), DetectorConfig(3), InputSize(96, 64))
    backbone = [unit for unit in units if isinstance(unit, Stem | OperationUnit)]
    assert sum(map(madds, backbone)) == counter.get_total_flops() // 2 + biases
    own = sum(p.numel() for p in Backbone(source_named(name)).parameters())
    assert own == sum(p.numel() for p in layers.parameters())


def without(state: Mapping[str, Tensor], missing: str) -> dict[str, Tensor]:
    assert missing in state
    return {key: tensor for key, tensor in state.items() if key != missing}


def test_weights_that_lack_a_tensor_are_refused(
    name: str, reference: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "other.pth"
    torch.save(without(reference.state_dict(), KNOWN[name].missing), file)
    with pytest.raises(AdaptError, match=f"do not fit {name}; pass a state dict with the names"):
        source_backbone(name, file)


def test_the_published_file_is_torchvisions(name: str) -> None:
    known, wanted = KNOWN[name].weights, PUBLISHED[name]
    assert wanted.url == known.url
    assert wanted.name == known.url.rpartition("/")[2]
    assert wanted.sha256 == Path(wanted.name).stem.rpartition("-")[2]


@SLOW_WHERE_LARGE
def test_a_network_of_its_space_is_searched_trained_and_deployed(
    name: str, weights: Path, tiny_data: CocoSplit, tiny_space_file: Path, tmp_path: Path
) -> None:
    recipe = replace(
        recipe_of(tiny_space_file),
        init="imagenet",
        weights=str(weights),
        space=SpaceRecipe(preset=name, width_grid=1000),
    ).changed({"finetune": {"mapping": "principal", "epochs": 1}}, "the test")
    steps = Session(limit_steps=2)
    run_search(recipe, tiny_data, madds_cost(recipe, 3), tmp_path, steps)
    chosen = random_architecture(recipe.space.load(), seed=1)
    path = tmp_path / "detector.safetensors"
    run_finetune(recipe, chosen, tiny_data, path, steps)
    model, info = load_detector(path)
    assert info.architecture == chosen
    norms = [m for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {traits_of(name).norm_eps}
    images = [tiny_data.images[0].path]
    deploy(path, tmp_path / "detector.onnx", Deployment(verify=images))
    deploy(path, tmp_path / "int8.onnx", Deployment(precision="int8", calibration=images))


RECIPE = """
name = "{name}"
weights = "{weights}"
data = {{ root = "{root}", workers = 0 }}
space = {{ preset = "{name}" }}
input = {{ height = 64, width = 64 }}
detector = {{ fpn_width = 8, head_depth = 0 }}
finetune = {{ epochs = 1, batch_size = 4, warmup_steps = 0 }}
"""


@SLOW_WHERE_LARGE
def test_a_user_with_a_file_of_weights_finetunes_the_source(
    name: str, weights: Path, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "detector.safetensors"
    root = tiny_data.annotations.parents[1]
    recipe.write_text(RECIPE.format(name=name, weights=weights, root=root))
    command = ["finetune", str(recipe), "--arch", name, "--limit-steps", "1"]
    result = CliRunner().invoke(app, [*command, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["lost_variance"] == pytest.approx(
        {"C3": 0, "C4": 0, "C5": 0}, abs=1e-6
    )
    assert load_detector(out)[1].architecture == source_named(name)
