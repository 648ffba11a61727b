"""Bottlenecks mix, are gated and are refused as MBConvs are, with a ReLU after their residual."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import shake
from torch import nn
from torchvision.models import resnet18

from adapt.architecture import Architecture, BottleneckShape
from adapt.errors import AdaptError
from adapt.network.mixed import MixedOperation, Recompute
from adapt.network.operations import Bottleneck, conv_operation, hidden_reach
from adapt.network.weights import source_backbone
from adapt.sources import resnet50
from adapt.space import PRESETS, SKIP, Operation, SearchSpace
from adapt.traits import traits_of

TRAITS = traits_of("resnet50").operations(0)


def mixed(residual: bool) -> MixedOperation:
    torch.manual_seed(0)
    candidates = [Operation(3, 0.25), Operation(5, 0.5), *([SKIP] if residual else [])]
    stride = 1 if residual else 2
    return MixedOperation(candidates, 32, 32, stride=stride, residual=residual, traits=TRAITS)


@pytest.mark.parametrize("recompute", ["off", "norms", "operation"])
@pytest.mark.parametrize("residual", [False, True])
def test_mixed_bottlenecks_are_equation_one_by_hand(residual: bool, recompute: Recompute) -> None:
    both, x = mixed(residual).requires_grad_(False), torch.randn(2, 32, 7, 9)
    p = torch.tensor([0.2, 0.5, 0.3])[: len(both.ops)]
    by_hand = sum(float(w) * op(x) for w, op in zip(p, both.ops, strict=True))
    torch.testing.assert_close(both(x, p, None, None, recompute), by_hand)
    several = both(x, p, (0, 1), None, recompute)
    torch.testing.assert_close(several, (0.2 * both.ops[0](x) + 0.5 * both.ops[1](x)) / 0.7)
    torch.testing.assert_close(both(x, p, 1, None, recompute), both.ops[1](x))


@pytest.mark.parametrize("residual", [False, True])
def test_a_bottleneck_by_hand(residual: bool) -> None:
    shape = BottleneckShape(32, 32 if residual else 48, 5, 0.5, 1 if residual else 2, residual)
    op = conv_operation(shape).double().eval()
    assert isinstance(op, Bottleneck)
    shake(op, seed=1)
    x = torch.randn(1, 32, 7, 9).double()
    beside = x if residual else op.shortcut(x)
    hidden = op.conv[1](op.conv[0](x))
    assert hidden.shape[1] == shape.hidden == (16 if residual else 24)
    wanted = (beside + op.conv[3](op.conv[2](hidden))).clamp(min=0)
    torch.testing.assert_close(op(x), wanted)
    assert bool((wanted == 0).any())


@torch.no_grad()
def narrowed(wide: Bottleneck, width: int) -> Bottleneck:
    """The bottleneck of fewer output channels that has the first ones of everything."""
    shape = replace(wide.shape, c_out=width)
    narrow = Bottleneck(shape, affine=False, track_running_stats=False)
    for of, to in zip(convolutions(wide), convolutions(narrow), strict=True):
        out, into = to.weight.shape[:2]
        to.weight.copy_(of.weight[:out, :into])
    return narrow


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize("expansion", [0.25, 0.375, 1])
def test_hidden_channels_belong_to_output_channels(expansion: float) -> None:
    """With a reach of the first channels alone, these are what a narrow bottleneck computes."""
    torch.manual_seed(0)
    shape = BottleneckShape(16, 64, 3, expansion, 2, residual=False)
    wide = Bottleneck(shape, affine=False, track_running_stats=False)
    reach = (torch.arange(64) < 40).float()
    assert int(hidden_reach(shape, reach).sum()) == replace(shape, c_out=40).hidden < shape.hidden
    x = torch.randn(2, 16, 9, 9)
    narrow = narrowed(wide, 40)
    torch.testing.assert_close(
        wide.branch(x, reach)[:, :40], narrow.branch(x), rtol=1e-4, atol=1e-5
    )
    scale = torch.tensor(0.3)
    torch.testing.assert_close(
        wide.branch(x, reach, scale), 0.3 * wide.branch(x, reach), rtol=1e-4, atol=1e-5
    )


SQUEEZED = {"stride": 2, "width": 2048, "ops": ["k3_e0.25_se"]}
SMALL_STEM = "pooling, which keeps its channels: first_width must be the 64 of stem_width, got 32"


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"first_width": 32}, SMALL_STEM),
        ({"taps": [1, 2, 3]}, "which are at [4, 8, 16]"),
        (
            {"blocks": [*resnet50().to_dict()["blocks"][:3], SQUEEZED]},
            "operation k3_e0.25_se has squeeze-excitation, which the bottlenecks of resnet50 do",
        ),
    ],
)
def test_networks_that_no_bottlenecks_make_are_refused(
    changes: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(AdaptError) as caught:
        Architecture.from_dict({**resnet50().to_dict(), **changes})
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"first_width": 32}, SMALL_STEM),
        ({"squeeze": [True]}, "block 2: bottlenecks have no squeeze-excitation"),
        ({"expansions": [0.0]}, "block 2: expansions must be at least 0.001, got [0]"),
        ({"taps": [1, 2, 3]}, "which are at [4, 8, 16]"),
    ],
)
def test_spaces_that_no_bottlenecks_make_are_refused(
    changes: dict[str, Any], fragment: str
) -> None:
    content = tomllib.loads((PRESETS / "resnet50.toml").read_text())
    second = content["blocks"][1]
    (content if changes.keys() <= content.keys() else second).update(changes)
    with pytest.raises(AdaptError) as caught:
        SearchSpace.from_dict(content)
    assert fragment in str(caught.value)


def test_a_file_of_a_resnet_without_bottlenecks_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), file)
    with pytest.raises(AdaptError, match="do not fit resnet50; pass a state dict with the names"):
        source_backbone("resnet50", file)
