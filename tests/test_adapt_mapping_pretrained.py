import random
from dataclasses import replace
from typing import get_args

import pytest
import torch
from core_parts import mostly_slow, shake, superset
from torch import Tensor
from torchvision.ops import SqueezeExcitation

from adapt.architecture import Architecture, Block
from adapt.errors import AdaptError
from adapt.mapping.pretrained import MappingMode, map_backbone, map_supernet
from adapt.network.backbone import Backbone
from adapt.network.masks import MaskKind
from adapt.network.mixed import IndividualBlocks
from adapt.network.operations import MBConv
from adapt.network.supernet import Supernet
from adapt.sources import SOURCES, source_named
from adapt.space import Operation, SearchSpace

K3, K5, K7 = Operation(3, 2), Operation(5, 2), Operation(7, 2)
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(*blocks: tuple[int, tuple[Operation, ...]]) -> Architecture:
    built = tuple(Block(2, width, ops) for width, ops in blocks)
    return Architecture("mobilenet_v2", 8, 4, tuple(range(1, len(built) + 1)), built)


SMALL = network((4, (K3, K5)), (6, (K5,)), (8, (K3, K3)))


def trained(architecture: Architecture, seed: int = 0) -> Backbone:
    """A backbone whose parameters and statistics are none of the defaults."""
    torch.manual_seed(seed)
    backbone = Backbone(architecture)
    shake(backbone, seed)
    return backbone.eval()


def mapped(
    source: Backbone, architecture: Architecture, mode: MappingMode = "paper", noise: float = 0.0
) -> Backbone:
    torch.manual_seed(99)
    target = Backbone(architecture).eval()
    map_backbone(source, target, mode=mode, noise=noise)
    return target


def convolution(backbone: Backbone, layer: int, number: int) -> Tensor:
    """Weight of expand (0), depthwise (1) or project (2) of the MBConv at a layer."""
    op = backbone.features[layer]
    assert isinstance(op, MBConv)
    return [m for m in op.modules() if isinstance(m, torch.nn.Conv2d)][number].weight


@pytest.mark.parametrize("mode", get_args(MappingMode))
def test_same_architecture_gets_the_same_state_bit_for_bit(mode: MappingMode) -> None:
    source = trained(SMALL)
    target = mapped(source, SMALL, mode, noise=0.5)
    assert target.state_dict().keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor), name


def test_smaller_kernel_lies_in_the_centre_of_a_larger_one() -> None:
    source = trained(network((4, (K3,))))
    weight = convolution(mapped(source, network((4, (K7,)))), 2, 1)
    assert torch.equal(weight[..., 2:5, 2:5], convolution(source, 2, 1))
    assert torch.count_nonzero(weight) == convolution(source, 2, 1).numel()


def test_larger_kernel_is_cropped_to_its_centre() -> None:
    source = trained(network((4, (K7,))))
    weight = convolution(mapped(source, network((4, (K3,)))), 2, 1)
    assert torch.equal(weight, convolution(source, 2, 1)[..., 2:5, 2:5])


def test_wider_block_gets_the_first_channels_and_zeros() -> None:
    source = trained(network((4, (K3,)), (6, (K3,))))
    target = mapped(source, network((7, (K3,)), (6, (K3,))))
    project, expand = convolution(target, 2, 2), convolution(target, 3, 0)
    assert torch.equal(project[:4], convolution(source, 2, 2))
    assert torch.count_nonzero(project[4:]) == 0
    assert torch.equal(expand[:8, :4], convolution(source, 3, 0))
    assert torch.count_nonzero(expand) == 8 * 4  # also the hidden channels that follow the width


def test_narrower_block_gets_the_first_channels() -> None:
    source = trained(network((4, (K3,)), (6, (K3,))))
    target = mapped(source, network((3, (K3,)), (6, (K3,))))
    assert torch.equal(convolution(target, 2, 2), convolution(source, 2, 2)[:3])
    assert torch.equal(convolution(target, 3, 0), convolution(source, 3, 0)[:6, :3])


@pytest.mark.parametrize("expansion", [1, 3])
def test_first_hidden_channels_are_mapped(expansion: int) -> None:
    source = trained(network((4, (Operation(3, 2),))))
    target = mapped(source, network((4, (Operation(3, expansion),))))
    depthwise, project = convolution(target, 2, -2), convolution(target, 2, -1)
    common = min(4 * expansion, 8)
    assert torch.equal(depthwise[:common], convolution(source, 2, 1)[:common])
    assert torch.equal(project[:, :common], convolution(source, 2, 2)[:, :common])
    assert torch.count_nonzero(project[:, common:]) == 0


def test_expansion_that_the_source_lacks_starts_at_zero() -> None:
    source = trained(network((4, (Operation(3, 1),))))
    target = mapped(source, network((4, (Operation(3, 2),))))
    assert torch.count_nonzero(convolution(target, 2, 0)) == 0


E3, E3_SE = Operation(3, 3), Operation(3, 3, se=True)
WIDE = network((32, (E3,)), (32, (E3, E3)))
WIDE_SE = network((32, (E3,)), (32, (E3_SE, E3_SE)))


def excitation(backbone: Backbone, layer: int) -> SqueezeExcitation:
    (found,) = (m for m in backbone.features[layer].modules() if isinstance(m, SqueezeExcitation))
    return found


def test_narrower_excitation_gets_the_first_channels() -> None:
    source = trained(WIDE_SE)
    target = mapped(source, network((16, (E3,)), (32, (E3_SE, E3_SE))))
    of, to = excitation(source, 3), excitation(target, 3)
    assert to.fc1.weight.shape[:2] == (16, 48)
    assert torch.equal(to.fc1.weight, of.fc1.weight[:16, :48])
    assert torch.equal(to.fc2.weight, of.fc2.weight[:48, :16])
    assert torch.equal(to.fc1.bias, of.fc1.bias[:16])
    assert torch.equal(to.fc2.bias, of.fc2.bias[:48])


@pytest.mark.parametrize("source", [WIDE, WIDE_SE])
def test_excitation_that_the_source_has_or_lacks_keeps_the_function(source: Architecture) -> None:
    wider = network((40, (E3,)), (36, (E3_SE, E3_SE, E3_SE)))
    before = trained(source)
    assert output_difference(before, mapped(before, wider, "identity")) <= 1e-5


def test_identity_is_refused_where_the_target_lacks_an_excitation() -> None:
    with pytest.raises(AdaptError, match=r"block 2 is .* use mode 'paper'"):
        mapped(trained(WIDE_SE), WIDE, "identity")


def test_an_operation_without_excitation_gets_the_rest() -> None:
    source = trained(WIDE_SE)
    target = mapped(source, WIDE)
    for number, counterpart in ((0, 0), (1, 1), (-1, -1)):
        of, to = convolution(source, 3, number), convolution(target, 3, counterpart)
        assert torch.equal(of, to)


def test_extra_operations_copy_the_last_one_of_their_block() -> None:
    source = trained(network((4, (K3, K5)), (6, (K3,))))
    target = mapped(source, network((4, (K3, K5, K5, K5)), (6, (K3,))))
    last = source.features[3].state_dict()
    for layer in (4, 5):
        extra = target.features[layer].state_dict()
        assert all(torch.equal(extra[name], tensor) for name, tensor in last.items())


def test_shallower_block_keeps_the_first_operations() -> None:
    source = trained(network((4, (K3, K5, K7)), (6, (K3,))))
    target = mapped(source, network((4, (K3, K5)), (6, (K3,))))
    for name, tensor in target.features[3].state_dict().items():
        assert torch.equal(tensor, source.features[3].state_dict()[name])
    assert torch.equal(convolution(target, 4, 0), convolution(source, 5, 0))


def test_surplus_batch_norm_channels_are_dead_and_have_unit_variance() -> None:
    source = trained(network((4, (K3,))))
    last = mapped(source, network((7, (K3,)))).features[2].conv[-1]
    surplus = [t[4:].tolist() for t in (last.weight, last.bias, last.running_mean)]
    assert surplus == [[0.0] * 3] * 3
    assert last.running_var[4:].tolist() == [1.0] * 3
    kept = source.features[2].conv[-1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(last, name)[:4], getattr(kept, name))


WIDER = network((9, (K5, K7, K5)), (12, (K7, K7)), (20, (K5, K5, K3)))


def test_noise_falls_on_surplus_weights_only() -> None:
    source = trained(SMALL)
    quiet, noisy = mapped(source, WIDER), mapped(source, WIDER, noise=0.5)
    surplus = []
    for (name, clean), other in zip(
        quiet.state_dict().items(), noisy.state_dict().values(), strict=True
    ):
        changed = clean != other
        assert torch.count_nonzero(clean[changed]) == 0  # never on what the source has
        if not name.endswith(".weight"):
            assert not changed.any(), name
        surplus.append(other[changed].float())
    values = torch.cat(surplus)
    assert float(values.std()) == pytest.approx(0.5, rel=0.05)
    assert float(values.mean()) == pytest.approx(0, abs=0.03)


def test_noise_repeats_with_its_generator() -> None:
    source, first, second = trained(SMALL), Backbone(WIDER), Backbone(WIDER)
    for target in (first, second):
        map_backbone(source, target, generator=torch.Generator().manual_seed(4))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def output_difference(source: Backbone, target: Backbone) -> float:
    """Largest difference of the taps, whose surplus channels must be zero."""
    wanted, found = source(IMAGE), target(IMAGE)
    return max(
        float((out - torch.nn.functional.pad(wanted[name], padding)).abs().max())
        for name, out in found.items()
        for padding in [(0, 0, 0, 0, 0, out.shape[1] - wanted[name].shape[1])]
    )


@pytest.mark.parametrize("seed", mostly_slow(120, usual=20))
def test_identity_keeps_the_function_in_any_superset(seed: int) -> None:
    ops = tuple(Operation(random.Random(seed).choice((3, 5)), 2) for _ in range(2))
    source = trained(network((4, ops), (6, ops[:1]), (8, (*ops, K3))), seed)
    target = mapped(source, superset(source.architecture, seed), "identity")
    assert source(IMAGE)["2"].std() > 0.05
    assert output_difference(source, target) <= 1e-5


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "resnet50"])
@pytest.mark.parametrize("seed", range(3))
def test_identity_keeps_the_function_of_a_source(seed: int, name: str) -> None:
    source = trained(source_named(name), seed)
    target = mapped(source, superset(source_named(name), seed), "identity")
    assert output_difference(source, target) <= 1e-5


def test_identity_keeps_the_function_with_the_statistics_of_the_batch() -> None:
    source = trained(SMALL)
    target = mapped(source, WIDER, "identity")
    assert output_difference(source.train(), target.train()) <= 1e-5


def test_identity_keeps_the_function_of_a_source_without_expansion() -> None:
    source = trained(network((4, (Operation(3, 1),))))
    try:
        target = mapped(source, network((4, (Operation(3, 2),))), "identity")
    except AdaptError:
        return  # refusing what cannot be kept is as good
    assert output_difference(source, target) <= 1e-5


def test_paper_mode_does_not_keep_the_function_of_a_deeper_network() -> None:
    source = trained(SMALL)
    assert output_difference(source, mapped(source, WIDER, "paper")) > 0.01


@pytest.mark.parametrize(
    "smaller",
    [
        network((3, (K3, K5)), (6, (K5,)), (8, (K3, K3))),
        network((4, (K3,)), (6, (K5,)), (8, (K3, K3))),
        network((4, (K3, K3)), (6, (K5,)), (8, (K3, K3))),
        network((4, (K3, Operation(5, 1))), (6, (K5,)), (8, (K3, K3))),
        replace(SMALL, blocks=(replace(SMALL.blocks[0], stride=1), *SMALL.blocks[1:])),
    ],
)
def test_identity_is_refused_where_the_target_does_not_contain_the_source(
    smaller: Architecture,
) -> None:
    with pytest.raises(AdaptError, match=r"block 1 is .* use mode 'paper'"):
        mapped(trained(SMALL), smaller, "identity")


@pytest.mark.parametrize(
    ("other", "fragment"),
    [
        (replace(SMALL, stem_width=16), "its stem_width is 8, the target's 16"),
        (replace(SMALL, first_width=8), "its first_width is 4, the target's 8"),
        (network((4, (K3,))), "its number of blocks is 3, the target's 1"),
    ],
)
def test_network_of_another_frame_is_refused(other: Architecture, fragment: str) -> None:
    with pytest.raises(AdaptError, match=fragment):
        mapped(trained(SMALL), other)


def test_report_counts_what_is_copied_per_tensor() -> None:
    source, target = trained(network((4, (K3,)))), Backbone(network((6, (K5,))))
    report = map_backbone(source, target)
    assert report.copied["features.2.conv.2.weight"] == (4 * 8, 6 * 8)  # project
    assert report.copied["features.2.conv.1.0.weight"] == (8 * 9, 8 * 25)  # depthwise
    assert {name for name, _ in target.named_parameters()} <= report.copied.keys()
    sums = [sum(column) for column in zip(*report.copied.values(), strict=True)]
    assert report.share == sums[0] / sums[1] < 1


def test_report_of_the_same_architecture_is_all_copied() -> None:
    assert map_backbone(trained(SMALL), Backbone(SMALL)).share == 1.0


# Fits the tiny space's frame, but not its widths: some are wider there, some narrower.
SOURCE = network((4, (K3,)), (9, (K5, K3)), (8, (K3, K3)), (20, (K7,)))


def candidates(net: Supernet, block: int, position: int) -> list[MBConv]:
    mixed = net.blocks[block]
    groups = list(mixed.blocks) if isinstance(mixed, IndividualBlocks) else [mixed.operations]
    return [op for group in groups for op in group[position].ops if isinstance(op, MBConv)]


def centre(weight: Tensor, size: int) -> Tensor:
    margin = (weight.shape[-1] - size) // 2
    return weight[..., margin : margin + size, margin : margin + size]


@pytest.mark.parametrize("mask", get_args(MaskKind))
def test_every_candidate_of_a_supernet_gets_the_source(
    tiny_space: SearchSpace, mask: MaskKind
) -> None:
    source = trained(SOURCE)
    net = Supernet(tiny_space, mask=mask)
    map_supernet(source, net, noise=0.0)
    starts = [2, *(end + 1 for end in source.block_ends)]
    for block, space in enumerate(tiny_space.blocks):
        depth = len(source.architecture.blocks[block].ops)
        for position in range(space.num_ops):
            from_op = source.features[starts[block] + min(position, depth - 1)]
            for op in candidates(net, block, position):
                assert_overlap(from_op.conv[-2].weight, op.conv[-2].weight)
                assert_overlap(from_op.conv[-3][0].weight, op.conv[-3][0].weight)


def assert_overlap(source: Tensor, target: Tensor) -> None:
    """First channels and centred kernels agree, and there is nothing else."""
    kernel = min(source.shape[-1], target.shape[-1])
    rows, columns = (min(a, b) for a, b in zip(source.shape[:2], target.shape[:2], strict=True))
    common = centre(source, kernel)[:rows, :columns]
    assert torch.equal(centre(target, kernel)[:rows, :columns], common)
    assert torch.count_nonzero(target) == torch.count_nonzero(common)


@pytest.mark.parametrize("mask", get_args(MaskKind))
def test_mapping_a_supernet_reports_all_of_it_and_leaves_its_choices_alone(
    tiny_space: SearchSpace, mask: MaskKind
) -> None:
    source, net = trained(SOURCE), Supernet(tiny_space, mask=mask)
    before = [p.detach().clone() for p in net.architecture_parameters()]
    report = map_supernet(source, net)
    for old, new in zip(before, net.architecture_parameters(), strict=True):
        assert torch.equal(old, new)
    everything = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in before)
    names = ("running_mean", "running_var", "num_batches_tracked")
    counted = [n for name, (_, n) in report.copied.items() if not name.endswith(names)]
    assert sum(counted) == everything
    assert 0 < report.share < 1
