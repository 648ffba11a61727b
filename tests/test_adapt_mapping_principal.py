from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from core_parts import mostly_slow, random_architecture, tiny
from mapping_parts import IMAGES, UNSEEN, network, taps, trained

from adapt.architecture import Architecture
from adapt.data.coco import CocoSplit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.retinanet import build_detector
from adapt.mapping.activations import Spread, passed_on, unlabelled
from adapt.mapping.pretrained import map_backbone, operations_of
from adapt.mapping.principal import (
    matrix,
    principal_detector,
    principal_source,
    projection,
    scale_and_shift,
    sum_of_covariances,
)
from adapt.network.backbone import Backbone
from adapt.network.operations import MBConv
from adapt.sources import SOURCES
from adapt.space import Operation


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("seed", mostly_slow(40, usual=6))
def test_taps_are_rotated_and_nothing_else_changes(seed: int, name: str) -> None:
    source = trained(random_architecture(tiny(name), seed), seed)
    after = principal_source(source, IMAGES)
    for before, rotated in zip(taps(source, UNSEEN), taps(after, UNSEEN), strict=True):
        gram = before @ before.T
        assert (rotated @ rotated.T - gram).norm() < 1e-9 * gram.norm()


@pytest.mark.parametrize("seed", mostly_slow(20, usual=2))
@torch.no_grad()
def test_a_detector_in_principal_axes_has_the_same_logits(
    seed: int,
) -> None:
    source = trained(random_architecture(tiny(), seed), seed)
    model = build_detector(source, DetectorConfig(3, fpn_width=8, head_depth=1)).double().eval()
    other = principal_detector(model, IMAGES)
    before, after = model.backbone.body.state_dict(), other.backbone.body.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    logits, expected = (m.head(list(m.backbone(UNSEEN).values())) for m in (other, model))
    for name in ("cls_logits", "bbox_regression"):
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(logits[name], expected[name], rtol=0, atol=1e-9 * scale)


@pytest.fixture(scope="module")
def rotated() -> Backbone:
    ops = Operation(3, 2), Operation(5, 3), Operation(3, 1)
    return principal_source(trained(network((6, ops[:2]), (8, ops), (10, ops[:1])), 1), IMAGES)


def test_axes_are_uncorrelated_and_of_falling_variance(rotated: Backbone) -> None:
    passed = passed_on(rotated, IMAGES)
    blocks = [[op for _, op in block] for block in operations_of(rotated)]
    for number in (0, 2):  # the second block's channels are read one by one by its last operation
        covariance = sum_of_covariances(blocks[number], passed)
        variances = covariance.diagonal()
        torch.testing.assert_close(covariance, variances.diag(), rtol=1e-9, atol=1e-12)
    for block in blocks:
        variances = sum_of_covariances(block, passed).diagonal()
        assert (variances.diff() < 1e-12).all()


def test_hidden_channels_contribute_falling_variances(rotated: Backbone) -> None:
    passed = passed_on(rotated, IMAGES)
    for op in (op for op in passed if op.shape.expansion != 1):
        project, norm = projection(op)
        strength = (scale_and_shift(norm)[0][:, None] * matrix(project)).square().sum(0)
        contributed = passed[op].hidden.variance * strength
        assert (contributed.diff() < 1e-12).all()


@torch.no_grad()
def test_last_batch_norms_have_the_statistics_of_the_images(rotated: Backbone) -> None:
    statistics = {}
    for op in (op for block in operations_of(rotated) for _, op in block):
        project, norm = projection(op)
        statistics[norm] = Spread()
        project.register_forward_hook(lambda *call, seen=statistics[norm]: seen.add(call[2]))
        scale, _ = scale_and_shift(norm)
        torch.testing.assert_close(scale, torch.ones_like(scale))
    for image in IMAGES:
        rotated(image)
    for norm, seen in statistics.items():
        torch.testing.assert_close(norm.running_mean, seen.mean)
        torch.testing.assert_close(norm.running_var, seen.variance)


def test_source_stem_and_first_block_stay_and_axes_are_always_the_same() -> None:
    source = trained(network((6, (Operation(3, 2),)), (8, (Operation(3, 2),))), 3)
    before = deepcopy(source.state_dict())
    first, second = (principal_source(source, IMAGES).state_dict() for _ in range(2))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(first[name], second[name])
        if name.startswith(("features.0.", "features.1.")):
            assert torch.equal(first[name], tensor)


@torch.no_grad()
def lower_rank(op: MBConv) -> None:
    """Let an operation write four dimensions of eight."""
    project, norm = projection(op)
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    scale, shift = scale_and_shift(norm)
    within = plane @ torch.linalg.pinv(plane)
    project.weight.copy_((within @ matrix(project) / scale[:, None])[:, :, None, None])
    norm.bias.add_(within @ shift - shift)


@torch.no_grad()
def idle_hidden(op: MBConv) -> None:
    """Let an operation make use of every second hidden channel only."""
    projection(op)[0].weight[:, ::2] = 0


E2, E4, E8 = (Operation(3, expansion) for expansion in (2, 4, 8))


@pytest.mark.parametrize(
    ("change", "smaller"),
    [
        (lower_rank, network((4, (E4, E8)), (6, (E8,)))),
        (idle_hidden, network((8, (E2, E2)), (6, (E4,)))),
    ],
)
def test_smaller_network_keeps_all_that_there_is(
    change: Callable[[MBConv], None], smaller: Architecture
) -> None:
    source = trained(network((8, (E4, E4)), (6, (E4,))), 2)
    for _, op in operations_of(source)[0]:
        change(op)
    errors = []
    for mapped in (principal_source(source, IMAGES), source):
        target = Backbone(smaller).double().eval()
        map_backbone(mapped, target, mode="principal", noise=0.0)
        (_, before), (_, after) = taps(source, UNSEEN), taps(target, UNSEEN)
        errors.append(float((before @ before.T - after @ after.T).norm() / before.norm() ** 2))
    assert errors[0] < 1e-9
    assert errors[1] > 0.01


def test_images_are_spread_evenly_normalised_and_neither_mirrored_nor_shuffled(
    tiny_data: CocoSplit,
) -> None:
    size = InputSize(64, 96)
    every, some = (list(unlabelled(tiny_data, size, number)) for number in (99, 4))
    assert len(every) == len(tiny_data) == 8
    assert all(torch.equal(a, b) for a, b in zip(some, every[::2], strict=True))
    assert every[0].shape == (1, 3, 64, 96)
    padded = every[0][0, :, :, -1]  # square images leave columns of 114 beside them
    expected = (114 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(padded, expected[:, None].expand(3, 64))
