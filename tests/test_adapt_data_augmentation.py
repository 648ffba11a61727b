"""Boxes stay on their objects, and a draw gives the same sample wherever it is loaded."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adapt.data.annotated_image import CocoImage
from adapt.data.augmentation import Augmentation, Draw, Labelled, mosaic, seeded
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.dataset import DetectionDataset, Loading, epoch_batches, training_batches
from adapt.data.formats.place import Place
from adapt.data.images import PADDING, InputSize
from adapt.errors import AdaptError
from search.recipe.recipe import Recipe

SIZE = InputSize(96, 128)
RED, GREEN = (250, 5, 5), (5, 250, 5)
ALL = Augmentation(zoom_out=0.6, crop=0.6, photometric=0.6, mosaic=0.4)


def split_of(folder: Path, number: int = 4) -> CocoSplit:
    """Blue images with one red and one green box each, 200 x 150 pixels."""
    images, boxes = [], []
    for n in range(number):
        pixels = np.zeros((150, 200, 3), np.uint8) + np.array((20, 20, 90), np.uint8)
        corners = [[10 + 9 * n, 20, 70 + 9 * n, 90], [120, 60 + 5 * n, 170, 130 + 5 * n]]
        for (x1, y1, x2, y2), colour in zip(corners, (RED, GREEN), strict=True):
            pixels[y1:y2, x1:x2] = colour
        path = folder / f"{n}.png"
        Image.fromarray(pixels).save(path)
        images.append(CocoImage(n, path, 200, 150))
        xyxy = np.array(corners, dtype=np.float64)
        boxes.append(ImageBoxes(xyxy, np.arange(2), np.zeros(2, bool), np.ones(2)))
    place = Place(folder / "x.json", folder)
    return CocoSplit(place, tuple(images), tuple(boxes), ("red", "green"), (1, 2))


def of_colour(pixels: Tensor, label: int) -> Tensor:
    """``bool[H, W]``, where an image is red or green."""
    values = pixels.int()
    return (values[label] > 130) & (values[1 - label] < 110) & (values[2] < 110)


def assert_boxes_hold_their_objects(pixels: Tensor, boxes: Tensor, labels: Tensor) -> None:
    """Every box is filled with its colour."""
    for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
        inside = of_colour(pixels, label)[round(y1) : round(y2), round(x1) : round(x2)]
        if inside.numel() > 100:  # of a sliver, edges are most of it
            assert inside.float().mean() > 0.85


CHANGES = [
    Augmentation(zoom_out=1.0),
    Augmentation(crop=1.0),
    Augmentation(photometric=1.0),
    Augmentation(mosaic=1.0),
    ALL,
]


@pytest.mark.parametrize("augmentation", CHANGES, ids=["zoom", "crop", "colour", "mosaic", "all"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_stay_on_their_objects(
    tmp_path: Path, augmentation: Augmentation, mirrored: bool
) -> None:
    dataset = DetectionDataset(split_of(tmp_path), SIZE, augmentation=augmentation)
    plain, found = dataset[Draw(0, mirrored)], 0
    changed = 0
    for seed in range(25):
        others = (1, 2, 3) if augmentation.mosaic == 1 else ()
        pixels, target = dataset[Draw(0, mirrored, seed, others)]
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 96, 128))
        boxes, labels = target["boxes"], target["labels"]
        assert boxes.dtype == torch.float32
        assert len(boxes) == len(labels)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert_boxes_hold_their_objects(pixels, boxes, labels)
        found += len(boxes)
        changed += not torch.equal(pixels, plain[0])
    assert found >= 20
    assert changed >= 15


def test_objects_keep_their_size_in_a_mosaic() -> None:
    one = Labelled(
        torch.zeros(3, 96, 128, dtype=torch.uint8),
        torch.tensor([[40.0, 30.0, 60.0, 50.0]]),
        torch.tensor([0]),
    )
    for seed in range(20):
        shown = seeded(seed, lambda: mosaic([one] * 4, SIZE))
        sides = (shown.boxes[:, 2:] - shown.boxes[:, :2]).prod(1)
        assert ((sides >= 0.25 * 400) & (sides <= 400)).all()
        assert 1 <= len(shown.boxes) <= 4


def test_the_padding_of_a_letterbox_keeps_its_colour(tmp_path: Path) -> None:
    only = Augmentation(photometric=1.0)
    dataset = DetectionDataset(split_of(tmp_path), InputSize(96, 160), augmentation=only)
    pixels = dataset[Draw(0, False, 3)][0]
    assert (pixels[:, :, 128:] == PADDING).all()
    assert not torch.equal(pixels[:, :, :128], dataset[0][0][:, :, :128])


def test_an_image_without_boxes_is_changed_too(tmp_path: Path) -> None:
    split = split_of(tmp_path, 1)
    empty = ImageBoxes(np.empty((0, 4)), np.empty(0, np.int64), np.empty(0, bool), np.empty(0))
    bare = CocoSplit(split.place, split.images, (empty,), split.class_names, split.category_ids)
    dataset = DetectionDataset(bare, SIZE, augmentation=Augmentation(zoom_out=1.0, crop=1.0))
    pixels, target = dataset[Draw(0, False, 1)]
    assert not torch.equal(pixels, dataset[0][0])
    assert tuple(target["boxes"].shape) == (0, 4)
    assert tuple(target["labels"].shape) == (0,)


def test_workers_and_a_cache_change_nothing(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    state = torch.get_rng_state()
    runs = []
    for cache_mb, workers in ((0.0, 0), (10.0, 0), (0.0, 1)):
        dataset = DetectionDataset(split, SIZE, flip=True, augmentation=ALL, cache_mb=cache_mb)
        loading = Loading(num_workers=workers)
        batches = training_batches(dataset, 2, seed=3, start_step=1, loading=loading)
        runs.append(list(islice(batches, 4)))
    for other in runs[1:]:
        for first, second in zip(runs[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
            for a, b in zip(first[1], second[1], strict=True):
                assert torch.equal(a["boxes"], b["boxes"])
                assert torch.equal(a["labels"], b["labels"])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_learned_on_crowds_and_they_move_with_the_image(tmp_path: Path) -> None:
    split = split_of(tmp_path, 1)
    crowd = replace(split.boxes[0], crowd=np.array([False, True]))
    grouped = replace(split, boxes=(crowd,))
    plain, alone = DetectionDataset(split, SIZE), DetectionDataset(grouped, SIZE)
    both = DetectionDataset(grouped, SIZE, crowds=True, augmentation=Augmentation(zoom_out=1.0))
    boxes = plain[0][1]["boxes"]
    assert torch.equal(alone[0][1]["boxes"], boxes[:1])
    assert "crowds" not in alone[0][1]
    assert torch.equal(both[0][1]["crowds"], boxes[1:])
    assert both[0][1]["labels"].tolist() == [0]
    for seed in range(5):
        pixels, target = both[Draw(0, True, seed)]
        assert len(target["crowds"]) == 1
        assert_boxes_hold_their_objects(pixels, target["crowds"], torch.tensor([1]))


@pytest.mark.parametrize("augmentation", [Augmentation(crop=1.0), Augmentation(mosaic=1.0)])
def test_what_is_left_of_a_crowd_stays_a_crowd(tmp_path: Path, augmentation: Augmentation) -> None:
    split = split_of(tmp_path)
    grouped = tuple(replace(boxes, crowd=np.array([False, True])) for boxes in split.boxes)
    split = replace(split, boxes=grouped)
    dataset = DetectionDataset(split, SIZE, crowds=True, augmentation=augmentation)
    seen = 0
    for seed in range(30):
        pixels, target = dataset[Draw(0, False, seed, (1, 2, 3) if augmentation.mosaic else ())]
        rest = of_colour(pixels, 1)
        seen += int(rest.sum()) > 20
        for x1, y1, x2, y2 in target["crowds"].round().int().tolist():
            rest[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
        assert int(rest.sum()) == 0  # no part of a crowd is background
        assert (target["labels"] == 0).all()
    assert seen > 15


def test_short_sides_scale_images_of_no_fixed_size(tmp_path: Path) -> None:
    size = InputSize(96, 400, "shortest-edge")
    sides = Augmentation(short_sides=(64, 96, 128))
    dataset = DetectionDataset(split_of(tmp_path), size, augmentation=sides)
    shown = {dataset[Draw(1, False, seed)][0].shape[1] for seed in range(30)}
    assert shown == {64, 96, 128}
    assert dataset[1][0].shape[1] == 96
    pixels, target = dataset[Draw(1, False, 7)]
    assert_boxes_hold_their_objects(pixels, target["boxes"], target["labels"])


def test_order_and_mirroring_do_not_depend_on_other_changes() -> None:
    plain = epoch_batches(40, 8, seed=1, epoch=2, flip=True)
    changed = epoch_batches(40, 8, seed=1, epoch=2, flip=True, augmentation=ALL)
    assert [draw[:2] for batch in plain for draw in batch] == [
        draw[:2] for batch in changed for draw in batch
    ]
    assert all(draw.seed is None for batch in plain for draw in batch)
    together = [bool(draw.others) for batch in changed for draw in batch]
    assert 0.2 < np.mean(together) < 0.65
    assert len({draw.seed for batch in changed for draw in batch}) == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 1.5}, "crop is a probability from 0 to 1, got 1.5"),
        ({"short_sides": [16]}, r"short_sides are at least 32 pixels, got \[16\]"),
        ({"zoom": 0.5}, "data.augment.zoom"),
        ({"mosaic": 0.5}, "mosaic needs an input that is a letterbox, got 'shortest-edge'"),
    ],
)
def test_wrong_changes_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Recipe().changed({"data": {"augment": changes}}, "test")


def test_short_sides_of_a_letterbox_are_refused() -> None:
    with pytest.raises(AdaptError, match="short_sides needs an input of another size"):
        Recipe().changed(
            {"input": {"resize": "letterbox", "height": 96, "width": 96}}
            | {"data": {"augment": {"short_sides": [96]}}},
            "test",
        )


def test_a_training_depends_on_its_changes_and_keeps_its_hash_without() -> None:
    plain = Recipe()
    none = plain.changed({"data": {"augment": {"crop": 0.0}}}, "test")
    some = plain.changed({"data": {"augment": {"crop": 0.5}}}, "test")
    assert none.finetune_hash == plain.finetune_hash != some.finetune_hash
    assert none.search_hash == plain.search_hash != some.search_hash


@pytest.mark.parametrize("text", ["crop=2", "crops=0.5", "crop=half", "=0.5"])
def test_an_option_that_is_no_change_is_refused(text: str) -> None:
    with pytest.raises(AdaptError, match=r"--augment must be one of zoom_out, crop, .*, got"):
        Augmentation.parse([text], "--augment")
    assert Augmentation.parse(["crop", "mosaic=0.25"], "") == Augmentation(crop=1.0, mosaic=0.25)
