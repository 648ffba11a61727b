"""What is mapped onto bottlenecks: first channels, sorted ones first, and the function kept."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from core_parts import random_architecture, superset, tiny
from mapping_parts import IMAGES, UNSEEN, trained
from torch import Tensor, nn

from adapt.architecture import Architecture, Block
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector
from adapt.detector.statistics import recalibrate_network
from adapt.errors import AdaptError
from adapt.mapping.lost import lost_variance
from adapt.mapping.pretrained import map_backbone, map_supernet, operations_of
from adapt.mapping.principal import principal_detector, principal_source
from adapt.mapping.refit import refit
from adapt.network.backbone import Backbone
from adapt.network.operations import Bottleneck
from adapt.network.supernet import Supernet
from adapt.space import Operation

K3, K5 = Operation(3, 0.5), Operation(5, 0.5)


def network(*blocks: tuple[int, tuple[Operation, ...]]) -> Architecture:
    built = tuple(Block(1 + (place > 0), *block) for place, block in enumerate(blocks))
    return Architecture("resnet50", 8, 8, (2, 3, 4), built)


SMALL = network((16, (K3, K3)), (32, (K5,)), (32, (K3, K5)), (48, (K3, K3)))


def mapped(source: Backbone, architecture: Architecture, mode: str = "paper") -> Backbone:
    torch.manual_seed(7)
    target = Backbone(architecture).double().eval()
    map_backbone(source, target, mode=mode, noise=0.0)
    return target


def bottlenecks(backbone: Backbone) -> list[Bottleneck]:
    ops = [op for block in operations_of(backbone) for _, op in block]
    assert all(isinstance(op, Bottleneck) for op in ops)
    return ops


@torch.no_grad()
def difference(source: Backbone, target: Backbone) -> float:
    """Largest difference of the taps by their deviation; surplus channels must be zero."""
    found = []
    for wanted, out in zip(source(UNSEEN).values(), target(UNSEEN).values(), strict=True):
        padded = torch.nn.functional.pad(wanted, (0, 0, 0, 0, 0, out.shape[1] - wanted.shape[1]))
        found.append(float((out - padded).abs().max() / wanted.std()))
    return max(found)


@pytest.mark.parametrize("seed", range(6))
def test_identity_keeps_the_function_in_any_superset(seed: int) -> None:
    source = trained(SMALL, seed)
    assert (
        difference(
            source, mapped(source, superset(SMALL, seed, (0, 0.25, 0.5), (0.25,)), "identity")
        )
        < 1e-9
    )


def test_identity_is_refused_where_bottlenecks_are_narrower() -> None:
    first = replace(SMALL.blocks[0], ops=(Operation(3, 0.25),) * 2)
    narrow = replace(SMALL, blocks=(first, *SMALL.blocks[1:]))
    with pytest.raises(AdaptError, match=r"block 1 is .* use mode 'paper'"):
        mapped(trained(SMALL, 0), narrow, "identity")


def test_first_channels_and_centres_are_copied_and_shortcuts_to_first_operations_alone() -> None:
    """Also where a block of one operation, with a shortcut, is mapped onto two."""
    source = trained(SMALL, 0)
    target = mapped(source, network((8, (K5,)), (32, (K3, K3)), (24, (K3, K3)), (48, (K5,))))
    first, second, third = bottlenecks(target)[:3]
    of_first, _, of_second = bottlenecks(source)[:3]
    assert torch.equal(first.conv[0][0].weight, of_first.conv[0][0].weight[:8])
    middle = first.conv[1][0].weight
    assert torch.equal(middle[:, :, 1:-1, 1:-1], of_first.conv[1][0].weight[:8, :8])
    assert not middle[:, :, 0].any()
    assert torch.equal(first.conv[2].weight, of_first.conv[2].weight[:8, :8])
    assert torch.equal(first.shortcut[0].weight, of_first.shortcut[0].weight[:8])
    assert torch.equal(first.shortcut[1].running_mean, of_first.shortcut[1].running_mean[:8])
    for op in (second, third):
        assert torch.equal(op.conv[1][0].weight, of_second.conv[1][0].weight[:, :, 1:-1, 1:-1])
    assert torch.equal(second.shortcut[0].weight[:, :8], of_second.shortcut[0].weight[:, :8])
    assert not list(third.shortcut.parameters())


@pytest.mark.parametrize("mask", ["non-overlapping", "individual"])
def test_every_tensor_of_a_supernet_is_mapped(mask: str) -> None:
    space = tiny("resnet50")
    source = trained(random_architecture(space, 1), 1).float()
    net = Supernet(space, mask=mask)
    report = map_supernet(source, net)
    choices = sum(p.numel() for p in net.architecture_parameters())
    names = ("running_mean", "running_var", "num_batches_tracked")
    counted = [n for name, (_, n) in report.copied.items() if not name.endswith(names)]
    assert sum(counted) == sum(p.numel() for p in net.parameters()) - choices


@pytest.mark.parametrize("seed", range(4))
def test_sorting_permutes_the_taps_and_nothing_else(seed: int) -> None:
    source = trained(random_architecture(tiny("resnet50"), seed), seed)
    before = deepcopy(source.state_dict())
    found = principal_source(source, IMAGES)
    assert all(torch.equal(before[name], t) for name, t in source.state_dict().items())
    assert any(not torch.equal(before[name], t) for name, t in found.state_dict().items())
    with torch.no_grad():
        for wanted, tap in zip(source(UNSEEN).values(), found(UNSEEN).values(), strict=True):
            scale = float(wanted.abs().max())
            torch.testing.assert_close(in_order(tap), in_order(wanted), rtol=0, atol=1e-9 * scale)


def in_order(tap: Tensor) -> Tensor:
    """The channels of a map in an order that depends on nothing but their values."""
    channels = tap[0].flatten(1)
    return channels[(channels @ torch.linspace(1, 2, channels.shape[1]).double()).argsort()]


def test_a_sorted_detector_has_the_same_logits() -> None:
    source = trained(random_architecture(tiny("resnet50"), 2), 2)
    model = build_detector(source, DetectorConfig(3, fpn_width=8, head_depth=1)).double().eval()
    other = principal_detector(model, IMAGES)
    with torch.no_grad():
        logits, expected = (m.head(list(m.backbone(UNSEEN).values())) for m in (other, model))
    for name in ("cls_logits", "bbox_regression"):
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(logits[name], expected[name], rtol=0, atol=1e-9 * scale)


@torch.no_grad()
def idle_hidden(op: Bottleneck) -> None:
    """Let an operation make use of every second hidden channel only, in both of its sets."""
    for conv in op.hidden_readers():
        conv.weight[:, ::2] = 0


@torch.no_grad()
def idle_stream(op: Bottleneck) -> None:
    """Let a block's operations write every second channel only."""
    written = [op.conv[3], *op.shortcut.children()]
    for norm in (layer for layer in written if isinstance(layer, nn.BatchNorm2d)):
        norm.weight[::2] = 0
        norm.bias[::2] = 0


E4, E8 = Operation(3, 0.25), Operation(3, 0.5)
TWICE = network((32, (E8, E8)), (32, (E8,)), (32, (E8,)), (32, (E8,)))


@pytest.mark.parametrize(
    ("change", "smaller"),
    [
        (idle_hidden, network((32, (E4, E4)), (32, (E8,)), (32, (E8,)), (32, (E8,)))),
        (idle_stream, network((16, (Operation(3, 1),) * 2), (32, (E8,)), (32, (E8,)), (32, (E8,)))),
    ],
)
def test_a_smaller_network_keeps_all_that_there_is(
    change: Callable[[Bottleneck], None], smaller: Architecture
) -> None:
    source = trained(TWICE, 3)
    for op in bottlenecks(source)[:2]:
        change(op)
    errors = []
    for of in (principal_source(source, IMAGES), source):
        grams = [gram(of), gram(mapped(of, smaller, "principal"))]
        errors.append(float((grams[0] - grams[1]).norm() / grams[0].norm()))
    assert errors[0] < 1e-9
    assert errors[1] > 0.01


@torch.no_grad()
def gram(backbone: Backbone) -> Tensor:
    tap = backbone(UNSEEN)["2"].transpose(0, 1).flatten(1).T
    return tap @ tap.T


def test_refitting_loses_less_and_keeps_what_was_copied_whole() -> None:
    source = trained(TWICE, 1)
    recalibrate_network(source, IMAGES)
    sorted_source = principal_source(source, IMAGES)
    same = mapped(sorted_source, TWICE)
    refit(sorted_source, same, IMAGES)
    assert difference(sorted_source, same) == 0
    target = mapped(sorted_source, network((24, (E4, E8)), (32, (E4,)), (24, (E8,)), (32, (E8,))))
    before = lost_variance(sorted_source, target, [UNSEEN])
    refit(sorted_source, target, IMAGES)
    after = lost_variance(sorted_source, target, [UNSEEN])
    assert after["C3"] < 0.9 * before["C3"]
