import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from export.graph.nms import ITERATIONS, nms_keep


def random_boxes(seed: int, number: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=generator) * spread
    sides = torch.rand(number, 2, generator=generator) * 40 + 20
    scores = torch.rand(number, generator=generator).sort(descending=True).values
    labels = torch.randint(0, 4, (number,), generator=generator)
    return torch.cat([corners, corners + sides], 1), scores, labels


def chain(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of which each overlaps its neighbours only: greedy keeps every second one."""
    left = torch.arange(length) * 2.0
    boxes = torch.stack([left, torch.zeros(length), left + 10, torch.full((length,), 10.0)], 1)
    return boxes, torch.linspace(0.9, 0.1, length), torch.zeros(length, dtype=torch.long)


def keep(boxes: Tensor, scores: Tensor, labels: Tensor, iterations: int = ITERATIONS) -> Tensor:
    valid = torch.ones(1, len(scores), dtype=torch.bool)
    return nms_keep(boxes[None], scores[None], labels[None], valid, 0.5, iterations)[0]


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[batched_nms(boxes, scores, labels, 0.5)] = True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_equals_torchvision_on_random_boxes(seed):
    boxes = random_boxes(seed, 300, spread=300.0)
    assert torch.equal(keep(*boxes), greedy(*boxes))


@pytest.mark.parametrize("seed", range(40))
def test_equals_torchvision_on_crowded_boxes(seed):
    boxes = random_boxes(seed, 300, spread=60.0)
    assert torch.equal(keep(*boxes), greedy(*boxes))


def test_chain_of_as_many_links_as_iterations_is_exact():
    boxes = chain(ITERATIONS + 1)
    assert keep(*boxes).tolist() == [i % 2 == 0 for i in range(ITERATIONS + 1)]


def test_longer_chain_keeps_duplicates_but_loses_nothing():
    boxes = chain(60)
    kept, expected = keep(*boxes), greedy(*boxes)
    assert kept[expected].all()
    assert kept.sum() > expected.sum()
    assert torch.equal(keep(*boxes, iterations=60), expected)


def test_invalid_boxes_neither_survive_nor_suppress():
    boxes, scores, labels = chain(3)
    valid = torch.tensor([[False, True, True]])
    mask = nms_keep(boxes[None], scores[None], labels[None], valid, 0.5)
    assert mask.tolist() == [[False, True, False]]


def test_images_of_a_batch_do_not_influence_each_other():
    parts = [random_boxes(seed, 100, 60.0) for seed in range(2)]
    boxes, scores, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    mask = nms_keep(boxes, scores, labels, torch.ones_like(scores, dtype=torch.bool), 0.5)
    assert torch.equal(mask, torch.stack([greedy(*part) for part in parts]))


def test_empty_boxes_do_not_suppress_each_other():
    boxes = torch.zeros(2, 4)
    assert keep(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)).all()


@pytest.mark.parametrize("iterations", [0, 15])
def test_odd_or_no_iterations_are_refused(iterations):
    with pytest.raises(ValueError, match=f"even and at least 2, got {iterations}"):
        keep(*chain(3), iterations=iterations)
