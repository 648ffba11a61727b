from typing import get_args

import pytest
import torch

from adapt.network.masks import GateNorm, gate, non_overlapping_masks, overlapping_masks
from adapt.space import SearchSpace

WIDTHS = (2, 3, 6)


def test_non_overlapping_rows_own_what_they_add() -> None:
    assert non_overlapping_masks(WIDTHS).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
    ]


def test_overlapping_rows_own_all_channels_up_to_their_width() -> None:
    assert overlapping_masks(WIDTHS).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]


def test_columns_of_non_overlapping_masks_sum_to_one_in_table_one() -> None:
    for block in SearchSpace.load("mobilenet_v2").blocks:
        masks = non_overlapping_masks(block.widths)
        assert torch.equal(masks.sum(0), torch.ones(block.widths[-1]))
        assert torch.equal(masks.cumsum(0), overlapping_masks(block.widths))


@pytest.mark.parametrize("widths", [(), (0, 4), (-2, 4), (4, 4), (4, 8, 6)])
def test_widths_that_do_not_increase_are_refused(widths: tuple[int, ...]) -> None:
    for build in (non_overlapping_masks, overlapping_masks):
        with pytest.raises(ValueError, match="positive and strictly increasing") as caught:
            build(widths)
        assert str(list(widths)) in str(caught.value)


def test_gate_of_figure_two_separates_or_accumulates_the_weights() -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    separate = gate(non_overlapping_masks(WIDTHS), p, "none")
    accumulated = gate(overlapping_masks(WIDTHS), p, "none")
    assert separate.tolist() == pytest.approx([0.2, 0.2, 0.3, 0.5, 0.5, 0.5])
    assert accumulated.tolist() == pytest.approx([1.0, 1.0, 0.8, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(("norm", "size"), [("mean", torch.mean), ("max", torch.max)])
def test_gate_norm_divides_the_scale_out(norm: GateNorm, size: object) -> None:
    p = torch.tensor([0.2, 0.3, 0.5])
    masks = non_overlapping_masks(WIDTHS)
    factors = gate(masks, p, norm)
    assert float(size(factors)) == pytest.approx(1)  # type: ignore[operator]
    plain = gate(masks, p, "none")
    assert torch.allclose(factors / factors[0], plain / plain[0])


@pytest.mark.parametrize("norm", get_args(GateNorm))
def test_gate_norm_keeps_the_direction_of_the_gradient(norm: GateNorm) -> None:
    p = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    masks, weight = non_overlapping_masks(WIDTHS), torch.arange(6.0)
    plain = torch.autograd.grad(gate(masks, p, "none") @ weight, p)[0]
    normed = torch.autograd.grad(gate(masks, p, norm) @ weight, p)[0]
    assert float(torch.cosine_similarity(plain, normed, 0)) == pytest.approx(1)


def test_loss_on_own_channels_reaches_only_their_probability() -> None:
    p = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    for candidate, mask in enumerate(non_overlapping_masks(WIDTHS)):
        loss = gate(non_overlapping_masks(WIDTHS), p, "none") @ mask
        expected = torch.zeros(3)
        expected[candidate] = mask.sum()
        assert torch.equal(torch.autograd.grad(loss, p)[0], expected)


def test_loss_on_own_channels_reaches_other_betas_by_the_softmax_only() -> None:
    beta = torch.tensor([0.3, -0.4, 0.1], requires_grad=True)
    masks, candidate, weight = non_overlapping_masks(WIDTHS), 1, 7.0
    p = beta.softmax(0)
    gradient = torch.autograd.grad(weight * gate(masks, p, "none") @ masks[candidate], beta)[0]
    own = weight * masks[candidate].sum()
    expected = own * p[candidate] * (torch.eye(3)[candidate] - p)  # derivative of the softmax
    assert torch.allclose(gradient, expected)


def test_overlapping_masks_couple_a_channel_to_every_wider_candidate() -> None:
    p = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    for candidate, owned in enumerate(non_overlapping_masks(WIDTHS)):
        loss = gate(overlapping_masks(WIDTHS), p, "none") @ owned
        reached = torch.autograd.grad(loss, p)[0] != 0
        assert reached.tolist() == [wider >= candidate for wider in range(3)]
