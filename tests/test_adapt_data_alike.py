"""Copies of an image are found in another size and quality, and others are not."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.data.alike import difference_hash, groups_of, near
from adapt.data.check import check_data
from adapt.data.coco import CocoSplit

CHANCE = np.random.default_rng(0)


def picture(seed: int, size: tuple[int, int] = (96, 128)) -> Image.Image:
    """Smooth noise, like a blurred photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("seed", range(5))
def test_a_copy_in_another_size_and_quality_looks_alike(seed: int) -> None:
    packed = io.BytesIO()
    picture(seed).resize((300, 200)).save(packed, "JPEG", quality=40)
    distance = difference_hash(picture(seed)) ^ difference_hash(Image.open(packed))
    assert distance.sum() <= 2


def test_distances_are_numbers_of_bits() -> None:
    hashes, others = (CHANCE.random((number, 64)) < 0.5 for number in (20, 30))
    for bits in (0, 25, 30, 64):
        for number, places in near(hashes, others, bits):
            expected = np.flatnonzero((hashes[number] != others).sum(1) <= bits)
            assert places.tolist() == expected.tolist()


def test_chains_of_alike_images_are_one_group() -> None:
    chain = np.zeros((4, 64), dtype=bool)
    for number in range(4):
        chain[number, : 3 * number] = True  # three bits from one to the next
    apart = ~chain[:1]
    groups = groups_of([*chain, *apart], bits=3)
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]
    assert len(set(groups_of([*chain, *apart], bits=2))) == 5


def test_images_of_val_that_are_copies_of_training_images_are_told(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    content = json.loads(tiny_data.annotations.read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    for name, number in (("train", 0), ("val", 1)):
        images = []
        for place, image in enumerate(content["images"][:4]):
            file = f"{name}-{image['file_name']}"
            # Half of the images of val are copies of training images, in another size.
            shown = picture(place if number and place < 2 else 100 * number + place)
            shown.resize((image["width"], image["height"])).save(tmp_path / "images" / file)
            images.append({**image, "file_name": file})
        ids = {image["id"] for image in images}
        boxes = [a for a in content["annotations"] if a["image_id"] in ids]
        split = {**content, "images": images, "annotations": boxes}
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(split))
    reports = check_data(tmp_path).reports
    (told,) = [text for text in reports["val"].warnings if "look like training images" in text]
    assert told.startswith("2 images of")
    assert "val-" in told
    assert "train-" in told
    assert not any("look like" in text for text in reports["train"].warnings)
