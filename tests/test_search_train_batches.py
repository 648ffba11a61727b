"""Every image is trained on once: halves of a search, and parts of a batch."""

import pytest
import torch

from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from search.train.batches import divided, split_halves


def test_halves_are_disjoint_equal_and_repeatable(tiny_data: CocoSplit) -> None:
    for split in (tiny_data, tiny_data.limit(7)):
        first, second = split_halves(split, seed=1)
        assert len(first) == len(second) == len(split) // 2
        assert not set(first.image_ids) & set(second.image_ids)
        assert split_halves(split, seed=1)[0].image_ids == first.image_ids
        assert split_halves(split, seed=2)[0].image_ids != first.image_ids


def test_one_image_cannot_be_divided(tiny_data: CocoSplit) -> None:
    with pytest.raises(AdaptError, match=r"has 1 image; .* at least 2"):
        split_halves(tiny_data.limit(1), seed=0)


@pytest.mark.parametrize(("images", "number"), [(4, 2), (4, 1), (5, 2), (1, 2), (6, 4)])
def test_parts_of_a_batch_hold_every_image_once_and_weigh_by_their_number(
    images: int, number: int
) -> None:
    batch = ([torch.full((3, 1, 1), i) for i in range(images)], [{"n": i} for i in range(images)])
    found = list(divided(batch, number))
    assert len(found) <= number
    assert [image for _, part in found for image in part[0]] == batch[0]
    assert [target for _, part in found for target in part[1]] == batch[1]
    assert [share for share, _ in found] == [len(part[0]) / images for _, part in found]
