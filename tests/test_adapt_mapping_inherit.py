"""Detectors that inherit a supernet's weights compute what the supernet computes."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from core_parts import decide, random_choices, shake, tiny
from torch import nn

from adapt.architecture import Choices, hidden_width
from adapt.detector.config import DetectorConfig, HeadKind
from adapt.detector.retinanet import build_detector
from adapt.mapping.inherit import inherit_detector
from adapt.network.mixed import IndividualBlocks
from adapt.network.operations import MBConv
from adapt.network.supernet import Supernet
from adapt.sources import SOURCES
from adapt.space import SKIP

CONFIG = DetectorConfig(num_classes=3, fpn_width=8, head_depth=1)


def widest(space):
    return [len(block.widths) - 1 for block in space.blocks]


def supernet_detector(seed=0, config=CONFIG, source="mobilenet_v2", **options):
    """A detector around a supernet, all parameters random, betas undecided."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(tiny(source), generator=generator, **options)
    detector = build_detector(supernet, config)
    shake(detector, seed)
    with torch.no_grad():
        for beta in supernet.betas:
            beta.normal_(generator=generator)
    return detector.train(), supernet


@torch.no_grad()
def outputs(detector, seed=1):
    """Pyramid and heads, with the statistics of the batch."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    features = list(detector.train().backbone(images).values())
    return [*features, *detector.head(features).values()]


def assert_same(first, second):
    for one, other in zip(outputs(first), outputs(second), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate_norm", ["none", "mean", "max"])
@pytest.mark.parametrize("seed", range(4))
def test_the_widest_network_computes_what_the_supernet_computes(seed, gate_norm):
    detector, supernet = supernet_detector(seed, gate_norm=gate_norm)
    ops, _ = random_choices(supernet.space, seed)
    supernet.paths = ops
    assert_same(
        detector, inherit_detector(detector, Choices.of(ops, widest(supernet.space)), CONFIG)
    )


@torch.no_grad()
def silence_surplus(supernet, widths):
    """Make no operation read a channel, or a hidden channel, that a network of these widths lacks.

    Output gates are shut above the widths as well.
    """
    kept_in = supernet.space.first_width
    for block, width, beta in zip(supernet.blocks, widths, supernet.betas, strict=True):
        kept = supernet.space.blocks[list(supernet.blocks).index(block)].widths[width]
        for position, mixed in enumerate(block.operations):
            for op in mixed.ops:
                if isinstance(op, MBConv):
                    read = kept_in if position == 0 else kept
                    convs = [m for m in op.modules() if isinstance(m, nn.Conv2d)]
                    convs[-1].weight[:, hidden_width(read, op.shape.expansion) :] = 0
                    if op.shape.expansion > 1:
                        convs[0].weight[:, read:] = 0
        beta[width + 1 :] = -1e4
        kept_in = kept


@pytest.mark.parametrize("seed", range(6))
def test_a_narrow_network_takes_the_first_channels(seed):
    detector, supernet = supernet_detector(seed)
    ops, widths = random_choices(supernet.space, seed)
    silence_surplus(supernet, widths)
    supernet.paths = ops
    narrow = inherit_detector(detector, Choices.of(ops, widths), CONFIG)
    assert (
        narrow.backbone.body.architecture.blocks[-1].width
        == supernet.space.blocks[-1].widths[widths[-1]]
    )
    assert_same(detector, narrow)


@pytest.mark.parametrize(
    ("source", "head"),
    [
        *((source, "retinanet") for source in SOURCES),
        *(("mobilenet_v2", head) for head in get_args(HeadKind) if head != "retinanet"),
    ],
)
@pytest.mark.parametrize("mask", ["overlapping", "individual"])
@pytest.mark.parametrize("seed", range(3))
def test_a_decided_supernet_is_its_network(seed, mask, source, head):
    config = replace(CONFIG, head=head)
    detector, supernet = supernet_detector(seed, config, source, mask=mask)
    choices = random_choices(supernet.space, seed)
    decide(supernet, choices)
    assert_same(detector, inherit_detector(detector, Choices.of(*choices), config))


def test_overlapping_masks_of_single_operations_fold_exactly():
    detector, supernet = supernet_detector(mask="overlapping")
    ops = [
        [0, *(block.candidates(position).index(SKIP) for position in range(1, block.num_ops))]
        for block in supernet.space.blocks
    ]
    supernet.paths = ops
    assert_same(
        detector, inherit_detector(detector, Choices.of(ops, widest(supernet.space)), CONFIG)
    )


def test_an_individual_block_is_scaled_by_all_that_have_its_channels():
    detector, supernet = supernet_detector(mask="individual")
    ops, widths = random_choices(supernet.space, 3)
    inherited = inherit_detector(detector, Choices.of(ops, widths), CONFIG)
    block, width = supernet.blocks[-1], widths[-1]
    assert isinstance(block, IndividualBlocks)
    reach = block.reach(supernet.betas[-1].softmax(0))
    kept = supernet.space.blocks[-1].widths[width]
    wide = detector.backbone.fpn.inner_blocks[-1][0].weight
    torch.testing.assert_close(
        inherited.backbone.fpn.inner_blocks[-1][0].weight,
        wide[:, :kept] * reach[:kept].view(1, -1, 1, 1),
    )


def test_the_supernet_is_left_as_it_was():
    detector, supernet = supernet_detector()
    before = {name: t.clone() for name, t in detector.state_dict().items()}
    inherit_detector(detector, Choices.of(*random_choices(supernet.space, 0)), CONFIG)
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name]), name
