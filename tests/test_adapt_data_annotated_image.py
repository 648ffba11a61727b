from pathlib import Path

import numpy as np
import pytest
from data_parts import IMAGE, read, write_set
from PIL import Image

from adapt.data.annotated_image import CocoImage, read_image
from adapt.data.check import check_split
from adapt.errors import AdaptError

ORIENTATION, TURN_LEFT = 0x0112, 8  # EXIF: shown turned left by a quarter


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (4, 3), "white").convert(mode).save(path)
    image = read_image(CocoImage(1, path, 4, 3))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_palette_with_transparency_is_read_without_a_warning(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 3), "red").convert("P")
    palette.save(tmp_path / "x.png", transparency=bytes(range(256)))
    assert read_image(CocoImage(1, tmp_path / "x.png", 4, 3)).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_image_is_refused_rather_than_saturated(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 40000, dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(AdaptError, match=r"x\.png has pixels of mode I;16"):
        read_image(CocoImage(1, tmp_path / "x.png", 4, 3))


def rotated(path: Path) -> Path:
    """Store 4x2 pixels, left half white, to be shown as 2x4 with the white half below."""
    pixels = Image.new("L", (4, 2))
    pixels.paste(255, (0, 0, 2, 2))
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_LEFT
    pixels.save(path, exif=exif)
    return path


def test_rotated_image_is_turned_when_annotated_as_displayed(tmp_path: Path) -> None:
    image = read_image(CocoImage(1, rotated(tmp_path / "x.png"), width=2, height=4))
    assert image.size == (2, 4)
    assert np.asarray(image)[:, 0, 0].tolist() == [0, 0, 255, 255]


def test_rotated_image_is_left_when_annotated_as_stored(tmp_path: Path) -> None:
    image = read_image(CocoImage(1, rotated(tmp_path / "x.png"), width=4, height=2))
    assert np.asarray(image)[0, :, 0].tolist() == [255, 255, 0, 0]


def test_report_counts_rotated_and_gray_images(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"width": 2, "height": 4}])
    rotated(root / "images" / "a.png")
    report = check_split(read(root))
    assert (report.rotated_images, report.grayscale_images) == (1, 1)
    assert (report.unreadable_images, report.mismatched_images) == (0, 0)
