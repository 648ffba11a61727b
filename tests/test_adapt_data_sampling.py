"""Images of rare classes are shown more often, as LVIS's repeat factors say."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.dataset import epoch_batches
from adapt.data.formats.place import Place
from adapt.data.sampling import repeat_factors, repeated
from adapt.errors import AdaptError
from search.recipe.recipe import Recipe


def split_of(*labels: list[int]) -> CocoSplit:
    """Images that show these classes."""
    boxes = [
        ImageBoxes(
            np.tile([0.0, 0.0, 5.0, 5.0], (len(of), 1)),
            np.array(of, dtype=np.int64),
            np.zeros(len(of), bool),
            np.ones(len(of)),
        )
        for of in labels
    ]
    images = tuple(CocoImage(n, Path(f"{n}.png"), 9, 9) for n in range(len(labels)))
    return CocoSplit(Place(Path("x.json"), Path()), images, tuple(boxes), ("a", "b"), (1, 2))


def test_a_rare_class_decides_on_its_images() -> None:
    split = split_of(*([[0]] * 15), [1, 0], [])
    factors = repeat_factors(split, 0.5)
    assert factors == [1.0] * 15 + [math.sqrt(0.5 * 17), 1.0]
    assert repeat_factors(split, 0.0) == [1.0] * 17
    assert repeat_factors(split_of([], []), 0.5) == [1.0, 1.0]


def test_epochs_keep_their_length_and_shares_follow_the_factors() -> None:
    chance = np.random.default_rng(0)
    factors = [1.0] * 18 + [2.5, 3.0]
    counts = Counter[int]()
    for _ in range(2000):
        epoch = repeated(factors, chance)
        assert len(epoch) == 20
        counts.update(epoch)
    usual = sum(counts[n] for n in range(18)) / 18
    assert counts[18] / usual == pytest.approx(2.5, rel=0.05)
    assert counts[19] / usual == pytest.approx(3.0, rel=0.05)


def test_images_alike_are_shown_as_without_factors() -> None:
    assert sorted(repeated([1.0] * 9, np.random.default_rng(1))) == list(range(9))
    rare = [4.0] + [1.0] * 30
    batches = epoch_batches(31, 4, seed=0, epoch=0, flip=True, repeats=rare)
    assert batches == epoch_batches(31, 4, seed=0, epoch=0, flip=True, repeats=rare)
    assert [len(batch) for batch in batches] == [4] * 7
    assert sum(draw.position == 0 for batch in batches for draw in batch) > 1


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(AdaptError, match="rare must be a share from 0 to 1, got 2"):
        Recipe().changed({"data": {"rare": 2.0}}, "test")
