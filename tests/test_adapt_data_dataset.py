import multiprocessing
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.dataset import (
    Batch,
    DetectionDataset,
    Loading,
    collate,
    endless_batches,
    epoch_batches,
    steps_per_epoch,
    training_batches,
)
from adapt.data.evaluate import detections_to_original
from adapt.data.formats.place import Place
from adapt.data.images import PADDING, InputSize
from adapt.detector.retinanet import NormalizeAndBatch
from adapt.errors import AdaptError

SIZE = InputSize(64, 96)


def boxes_of(*rows: list[float], crowd: bool = False) -> ImageBoxes:
    xyxy = np.array(rows, dtype=np.float64).reshape(-1, 4)
    count = len(xyxy)
    return ImageBoxes(xyxy, np.arange(count) % 2, np.full(count, crowd), np.ones(count))


def split_of(folder: Path, *boxes: ImageBoxes, width: int = 60, height: int = 50) -> CocoSplit:
    """Images of random pixels with the given boxes."""
    images = []
    for number in range(len(boxes)):
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        images.append(CocoImage(100 + number, path, width, height))
    return CocoSplit(Place(folder / "x.json", folder), tuple(images), boxes, ("a", "b"), (1, 2))


def assert_same(first: Batch, second: Batch) -> None:
    assert [t["image_id"] for t in first[1]] == [t["image_id"] for t in second[1]]
    for a, b in zip(first[0], second[0], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first[1], second[1], strict=True):
        assert torch.equal(a["boxes"], b["boxes"])


def test_sample_is_fitted_and_its_boxes_follow(tmp_path: Path) -> None:
    split = split_of(tmp_path, boxes_of([10, 5, 30, 50]), width=120, height=100)
    pixels, target = DetectionDataset(split, SIZE)[0]
    assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 64, 96))
    fx, fy = 77 / 120, 64 / 100  # a letterbox of 0.64, to whole pixels
    assert target["factors"].tolist() == pytest.approx([fx, fy])
    assert target["boxes"].tolist() == [pytest.approx([10 * fx, 5 * fy, 30 * fx, 50 * fy])]
    assert (pixels[:, :, 77:] == PADDING).all()
    assert int(target["image_id"]) == 100


@pytest.mark.parametrize("resize", ["letterbox", "shortest-edge"])
@pytest.mark.parametrize(("width", "height"), [(120, 100), (31, 77), (640, 480)])
def test_boxes_return_to_the_original_image(
    tmp_path: Path, resize: str, width: int, height: int
) -> None:
    box = [1.5, 2.25, width - 3.0, height - 4.5]
    split = split_of(tmp_path, boxes_of(box), width=width, height=height)
    _, target = DetectionDataset(split, InputSize(64, 96, resize))[0]  # type: ignore[arg-type]
    original, _ = detections_to_original(target["boxes"], target["factors"], width, height)
    assert original.tolist() == [pytest.approx(box, rel=1e-5)]


def test_crowd_and_vanishing_boxes_are_no_targets(tmp_path: Path) -> None:
    thin = [50, 5, 50 + 1e-9, 9]
    split = split_of(tmp_path, boxes_of([1, 2, 9, 9], crowd=True), boxes_of(thin, [1, 2, 9, 9]))
    dataset = DetectionDataset(split, SIZE)
    assert tuple(dataset[0][1]["boxes"].shape) == (0, 4)
    assert dataset[1][1]["labels"].tolist() == [1]


def test_image_without_boxes_stays_as_negative(tmp_path: Path) -> None:
    target = DetectionDataset(split_of(tmp_path, boxes_of()), SIZE)[0][1]
    assert (target["boxes"].dtype, tuple(target["boxes"].shape)) == (torch.float32, (0, 4))
    assert (target["labels"].dtype, tuple(target["labels"].shape)) == (torch.int64, (0,))


def test_mirrored_box_covers_the_mirrored_pixels(tmp_path: Path) -> None:
    split = split_of(tmp_path, boxes_of([0, 0, 20, 50]), width=60, height=50)
    dataset = DetectionDataset(split, SIZE)
    plain, mirrored = dataset[(0, False)], dataset[(0, True)]
    left, right = (round(float(x)) for x in mirrored[1]["boxes"][0, [0, 2]])
    width = round(float(plain[1]["boxes"][0, 2]))
    assert right - left == width
    assert torch.equal(mirrored[0][:, :, left:right], plain[0][:, :, :width].flip(-1))
    assert torch.equal(mirrored[0][:, :, right:], plain[0][:, :, right:])  # padding stays right


def test_mirroring_twice_gives_the_sample_back(tmp_path: Path) -> None:
    split = split_of(tmp_path, boxes_of([3, 4, 20, 41]))
    dataset = DetectionDataset(split, SIZE, cache_mb=1)
    before = dataset[0][0].clone()
    dataset[(0, True)]
    assert torch.equal(dataset[0][0], before)  # the cached image is not touched


def test_cache_serves_images_whose_file_is_gone_up_to_its_bound(tmp_path: Path) -> None:
    split = split_of(tmp_path, boxes_of(), boxes_of())
    one_image = 3 * 64 * 96 / 2**20
    dataset = DetectionDataset(split, SIZE, cache_mb=1.5 * one_image)
    first = dataset[0][0], dataset[1][0]
    for image in split.images:
        image.path.unlink()
    assert torch.equal(dataset[0][0], first[0])
    with pytest.raises(AdaptError, match=r"1\.png does not exist; .*`adapt data check`"):
        dataset[1]


def test_images_of_a_batch_stay_bytes_and_are_divided_where_the_detector_runs(
    tmp_path: Path,
) -> None:
    images, targets = collate([DetectionDataset(split_of(tmp_path, boxes_of()), SIZE)[0]])
    assert (images[0].dtype, int(images[0][0, 0, -1]), len(targets)) == (torch.uint8, PADDING, 1)
    transform = NormalizeAndBatch(0, 0, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    (of_bytes, _), (of_floats, _) = transform(images), transform([images[0] / 255])
    assert torch.equal(of_bytes.tensors, of_floats.tensors)


def test_epoch_shows_every_image_at_most_once_in_full_batches() -> None:
    batches = epoch_batches(11, 4, seed=0, epoch=0, flip=False)
    shown = [draw.position for batch in batches for draw in batch]
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(shown)) == 8
    assert not any(draw.mirrored for batch in batches for draw in batch)


def test_fewer_images_than_a_batch_make_one_small_batch() -> None:
    batches = epoch_batches(3, 8, seed=0, epoch=0, flip=True)
    assert [sorted(draw.position for draw in batch) for batch in batches] == [[0, 1, 2]]
    assert steps_per_epoch(3, 8) == 1


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first = epoch_batches(64, 8, seed=1, epoch=0, flip=True)
    assert first == epoch_batches(64, 8, seed=1, epoch=0, flip=True)
    assert first != epoch_batches(64, 8, seed=1, epoch=1, flip=True)
    assert first != epoch_batches(64, 8, seed=2, epoch=0, flip=True)


def test_about_half_of_the_images_are_mirrored() -> None:
    batches = epoch_batches(1000, 10, seed=0, epoch=0, flip=True)
    assert 430 < sum(draw.mirrored for batch in batches for draw in batch) < 570


@pytest.mark.parametrize("step", [0, 1, 2, 3, 7])
def test_batches_resume_at_any_step(step: int) -> None:
    whole = list(islice(endless_batches(13, 4, seed=5, flip=True), 12))
    rest = endless_batches(13, 4, seed=5, flip=True, start_step=step)
    assert list(islice(rest, 12 - step)) == whole[step:]


@pytest.mark.parametrize(("batch", "processes"), [(4, 2), (6, 3), (4, 1)])
def test_processes_share_out_every_batch(tmp_path: Path, batch: int, processes: int) -> None:
    dataset = DetectionDataset(split_of(tmp_path, *(boxes_of() for _ in range(7))), SIZE)

    def ids(shard: tuple[int, int]) -> list[list[int]]:
        batches = islice(training_batches(dataset, batch, seed=1, loading=Loading(shard=shard)), 3)
        return [[int(target["image_id"]) for target in targets] for _, targets in batches]

    whole, shares = ids((0, 1)), [ids((number, processes)) for number in range(processes)]
    assert {len(part) for share in shares for part in share} == {batch // processes}
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


def test_workers_deliver_the_same_batches_and_leave_the_random_state(tmp_path: Path) -> None:
    split = split_of(tmp_path, *(boxes_of([k, 1, 30, 40]) for k in range(5)))
    dataset = DetectionDataset(split, SIZE, flip=True)
    state = torch.get_rng_state()
    in_process = islice(training_batches(dataset, 2, seed=3, start_step=1), 4)
    one_worker = Loading(num_workers=1)
    by_worker = islice(training_batches(dataset, 2, seed=3, start_step=1, loading=one_worker), 4)
    for first, second in zip(in_process, by_worker, strict=True):
        assert_same(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_loading_process_outlives_the_report_of_an_image_it_cannot_read(tmp_path: Path) -> None:
    split = split_of(tmp_path, *(boxes_of([k, 1, 30, 40]) for k in range(3)))
    (tmp_path / "1.png").write_text("no image")
    dataset = DetectionDataset(split, SIZE)
    with pytest.raises(AdaptError, match=r"1\.png cannot be decoded") as error:
        list(training_batches(dataset, 3, seed=0, loading=Loading(num_workers=2)))
    assert "Traceback" not in str(error.value)
    assert multiprocessing.active_children() == []
