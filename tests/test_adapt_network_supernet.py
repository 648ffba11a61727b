from collections import OrderedDict
from dataclasses import replace
from typing import cast, get_args

import pytest
import torch
from core_parts import Indices, decide, one_hot, random_choices
from torch import Tensor, nn

from adapt.architecture import Architecture, MBConvShape
from adapt.network.backbone import Backbone
from adapt.network.masks import MaskKind
from adapt.network.mixed import IndividualBlocks, MixedOperation, SharedBlock
from adapt.network.operations import MBConv, hidden_reach, squeezed_reach
from adapt.network.supernet import Supernet
from adapt.space import SKIP, BlockSpace, Operation, SearchSpace

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("expansion", [2, 2.3, 2.5])
@pytest.mark.parametrize("narrow", [5, 24, 47])
def test_hidden_channels_reach_as_far_as_a_narrow_operation_has_them(
    narrow: int, expansion: float
) -> None:
    reach = (torch.arange(48) < narrow).float()
    wide = MBConvShape(48, 8, 3, expansion, 1, False, se=True)
    kept = replace(wide, c_in=narrow)
    for found, width in (
        (hidden_reach(wide, reach), kept.hidden),
        (squeezed_reach(wide, reach), kept.squeezed),
    ):
        assert found.tolist() == [float(channel < width) for channel in range(len(found))]
    assert len(hidden_reach(wide, reach)) == wide.hidden
    assert len(squeezed_reach(wide, reach)) == wide.squeezed


def supernet(space: SearchSpace, mask: MaskKind, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    return Supernet(space, mask=mask, generator=torch.Generator().manual_seed(seed)).train()


def test_mixed_operation_is_equation_one_by_hand() -> None:
    mixed = MixedOperation([Operation(3, 2), SKIP], 4, 4, stride=1, residual=True)
    x = torch.randn(2, 4, 5, 5)
    a, b = 0.7, -0.2
    total = torch.tensor([a, b]).exp().sum()
    by_hand = torch.tensor(a).exp() / total * mixed.ops[0](x) + torch.tensor(b).exp() / total * x
    torch.testing.assert_close(mixed(x, torch.tensor([a, b]).softmax(0), None), by_hand)


def two_widths(operations: int = 1) -> BlockSpace:
    return BlockSpace(num_ops=operations, stride=2, kernels=(3,), expansions=(2,), widths=(2, 6))


def ones(operations: int) -> list[Tensor]:
    return [torch.ones(1), *(torch.eye(2)[0] for _ in range(operations - 1))]


@pytest.mark.parametrize(
    ("mask", "low", "high"), [("non-overlapping", 0.25, 0.75), ("overlapping", 1.0, 0.75)]
)
def test_shared_block_is_equation_two_by_hand(mask: MaskKind, low: float, high: float) -> None:
    block = SharedBlock(two_widths(), 4, mask, "none")
    x = torch.randn(2, 4, 6, 6)
    shared = cast(MixedOperation, block.operations[0]).ops[0](x)
    out = block(x, ones(1), torch.tensor([0.25, 0.75]), [None])
    assert torch.allclose(out[:, :2], low * shared[:, :2])
    assert torch.allclose(out[:, 2:], high * shared[:, 2:])


def test_non_overlapping_masks_gate_the_block_and_not_its_operations() -> None:
    block = SharedBlock(two_widths(operations=2), 4, "non-overlapping", "none")
    first, second = (cast(MixedOperation, mixed).ops[0] for mixed in block.operations)
    x = torch.randn(2, 4, 6, 6)
    gates = torch.tensor([0.25] * 2 + [0.75] * 4)[:, None, None]
    out = block(x, ones(2), torch.tensor([0.25, 0.75]), [None, None])
    assert torch.allclose(out, gates * second(first(x)), atol=1e-6)


def test_individual_blocks_are_zero_padded_and_summed() -> None:
    block = IndividualBlocks(two_widths(), 4)
    narrow, wide = (cast(MixedOperation, group[0]).ops[0] for group in block.blocks)
    x = torch.randn(2, 4, 6, 6)
    out = block(x, ones(1), torch.tensor([0.25, 0.75]), [None])
    assert torch.allclose(out[:, :2], 0.25 * narrow(x) + 0.75 * wide(x)[:, :2])
    assert torch.allclose(out[:, 2:], 0.75 * wide(x)[:, 2:])


def test_loss_on_the_widest_slab_reaches_only_its_probability() -> None:
    block = SharedBlock(two_widths(), 4, "non-overlapping", "none")
    p = torch.tensor([0.25, 0.75], requires_grad=True)
    out = block(torch.randn(2, 4, 6, 6), ones(1), p, [None])
    gradient = torch.autograd.grad(out[:, 2:].square().sum(), p)[0]
    assert gradient[0] == 0
    assert gradient[1] > 0


@torch.no_grad()
def copy_cropped(source: nn.Module, target: nn.Module) -> None:
    """Copy the first channels of every convolution."""
    for of, to in zip(convolutions(source), convolutions(target), strict=True):
        out_channels, in_channels = to.weight.shape[:2]
        to.weight.copy_(of.weight[:out_channels, :in_channels])


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def chosen_operations(net: Supernet, choices: Indices) -> list[MBConv]:
    """The MBConvs of the supernet that the derived network consists of, in order."""
    kept = []
    for block, ops, width in zip(net.blocks, *choices, strict=True):
        group = block.operations if isinstance(block, SharedBlock) else block.blocks[width]
        candidates = [mixed.ops[index] for mixed, index in zip(group, ops, strict=True)]
        kept += [op for op in candidates if isinstance(op, MBConv)]
    return kept


def derived(net: Supernet, choices: Indices) -> Backbone:
    """Build the arg max network with the supernet's weights, cropped."""
    backbone = Backbone(net.argmax()).train()
    backbone.features[0].load_state_dict(net.stem.state_dict())
    backbone.features[1].load_state_dict(net.first.state_dict())
    operations = chosen_operations(net, choices)
    for of, to in zip(operations, backbone.features[2:], strict=True):
        copy_cropped(of, to)
    return backbone  # its new BatchNorms have scale 1 and shift 0, and use the batch's statistics


def padded_difference(
    wide: "OrderedDict[str, Tensor]", narrow: "OrderedDict[str, Tensor]"
) -> float:
    """Largest difference, where channels that the narrow network lacks must be zero."""
    return max(
        max(
            float((out[:, : narrow[name].shape[1]] - narrow[name]).abs().max()),
            float(out[:, narrow[name].shape[1] :].abs().sum()),
        )
        for name, out in wide.items()
    )


@pytest.mark.parametrize("mask", ["overlapping", "individual"])
@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_one_hot_supernet_is_the_derived_network(
    tiny_space: SearchSpace, mask: MaskKind, seed: int
) -> None:
    net, choices = supernet(tiny_space, mask, seed), random_choices(tiny_space, seed)
    decide(net, choices)
    backbone = derived(net, choices)
    assert padded_difference(net(IMAGES), backbone(IMAGES)) < 1e-5


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_one_hot_non_overlapping_supernet_passes_the_last_slab_only(
    tiny_space: SearchSpace, seed: int
) -> None:
    choices = random_choices(tiny_space, seed)[0], [1] * 4  # no block at its narrowest
    net = supernet(tiny_space, "non-overlapping", seed)
    decide(net, choices)
    backbone = derived(net, choices)
    for (name, out), block in zip(net(IMAGES).items(), tiny_space.blocks[1:], strict=True):
        owned = out.abs().sum((0, 2, 3)) > 0
        assert owned.nonzero().flatten().tolist() == list(range(*block.widths[:2]))
        assert float((out[:, : block.widths[1]] - backbone(IMAGES)[name]).abs().max()) > 0.01


@pytest.mark.parametrize("mask", get_args(MaskKind))
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_sampled_path_is_a_one_hot_alpha(
    tiny_space: SearchSpace, mask: MaskKind, seed: int
) -> None:
    net, choices = supernet(tiny_space, mask), random_choices(tiny_space, seed)
    net.paths = choices[0]
    sampled = net(IMAGES)
    net.paths = None
    for alphas, decided in zip(net.alphas, one_hot(tiny_space, choices)[0], strict=True):
        for alpha, target in zip(alphas.parameters(), decided, strict=True):
            alpha.copy_(1e4 * (target - 1))
    for name, out in net(IMAGES).items():
        assert torch.equal(out, sampled[name])


def test_sampling_repeats_with_its_generator(tiny_space: SearchSpace) -> None:
    net = supernet(tiny_space, "non-overlapping")

    def draw(seed: int, uniform: bool) -> list[list[list[int]]]:
        generator = torch.Generator().manual_seed(seed)
        return [net.sample_paths(generator, uniform=uniform) for _ in range(5)]

    for uniform in (True, False):
        assert draw(1, uniform) == draw(1, uniform)
        assert draw(1, uniform) != draw(2, uniform)


def test_only_uniform_sampling_ignores_alpha(tiny_space: SearchSpace) -> None:
    net, choices = supernet(tiny_space, "non-overlapping"), random_choices(tiny_space, 1)
    decide(net, choices)
    generator = torch.Generator().manual_seed(0)
    drawn = [net.sample_paths(generator, uniform=False) for _ in range(10)]
    assert drawn == [choices[0]] * 10
    uniform = [net.sample_paths(generator, uniform=True) for _ in range(50)]
    seen = {paths[1][2] for paths in uniform}
    assert seen == set(range(len(tiny_space.blocks[1].candidates(2))))


@pytest.mark.parametrize("seed", range(5))
def test_argmax_is_the_network_of_the_highest_parameters(
    tiny_space: SearchSpace, seed: int
) -> None:
    net, (ops, widths) = supernet(tiny_space, "non-overlapping"), random_choices(tiny_space, seed)
    decide(net, (ops, widths))
    architecture: Architecture = net.argmax()
    architecture.check_fits(tiny_space)
    for block, kept, chosen, width in zip(
        tiny_space.blocks, architecture.blocks, ops, widths, strict=True
    ):
        candidates = [block.candidates(p)[index] for p, index in enumerate(chosen)]
        assert kept.ops == tuple(op for op in candidates if op != SKIP)
        assert (kept.width, kept.stride) == (block.widths[width], block.stride)


def test_alphas_start_near_and_betas_at_the_uniform_distribution() -> None:
    net = supernet(SearchSpace.load("mobilenet_v2").on_grid(1000), "non-overlapping")
    alphas = torch.cat([alpha.flatten() for alpha in net.alphas.parameters()])
    assert float(alphas.detach().std()) == pytest.approx(1e-3, rel=0.2)
    assert all(torch.equal(beta, torch.zeros_like(beta)) for beta in net.betas)


def test_searched_batch_norms_have_neither_scale_nor_statistics(tiny_space: SearchSpace) -> None:
    net = supernet(tiny_space, "non-overlapping")
    norms = [m for m in net.blocks.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.affine or norm.track_running_stats for norm in norms)
