"""Everything that opens images sees the same pixels, and refuses the same files."""

from pathlib import Path
from struct import pack
from zlib import compress, crc32

import numpy as np
import pytest
from data_parts import IMAGE, annotation, read, told, write_set
from PIL import Image, ImageOps
from typer.testing import CliRunner

from adapt.data.annotated_image import CocoImage, read_image
from adapt.data.check import check_split
from adapt.data.coco import load_split
from adapt.data.images import decode, find_images, open_image
from adapt.errors import AdaptError
from cli import app

ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)


def photo(path: Path, orientation: int, size: tuple[int, int]) -> Path:
    """Store noise of (width, height) that viewers turn by its EXIF orientation."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(noise).save(path, exif=exif)
    return path


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (32, 32)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_and_prediction_see_what_viewers_show(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    path = photo(tmp_path / "x.png", orientation, size)
    with Image.open(path) as stored:
        shown = ImageOps.exif_transpose(stored)
    annotated = CocoImage(1, path, *shown.size)
    assert np.array_equal(read_image(annotated), shown)
    assert np.array_equal(open_image(path), shown)


@pytest.mark.parametrize("orientation", QUARTER_TURNS)
def test_annotated_as_stored_is_read_as_stored(tmp_path: Path, orientation: int) -> None:
    path = photo(tmp_path / "x.png", orientation, (40, 30))
    found = read_image(CocoImage(1, path, 40, 30))
    with Image.open(path) as stored:
        assert np.array_equal(found, stored)


def report_of(tmp_path: Path, orientation: int, box: list[float]):  # type: ignore[no-untyped-def]
    root = write_set(tmp_path / "set", images=[IMAGE], annotations=[annotation(bbox=box)])
    photo(root / "images" / IMAGE["file_name"], orientation, (IMAGE["width"], IMAGE["height"]))
    return check_split(read(root))


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_report_says_how_images_are_read_whose_size_cannot_tell(
    tmp_path: Path, orientation: int
) -> None:
    report = report_of(tmp_path, orientation, [1, 1, 5, 5])
    assert report.rotated_images == 1
    assert not report.problems
    assert "1 images have the same width and height with and without" in report.warnings[0]
    assert "a.png); they are read as viewers show them" in report.warnings[0]


def test_report_says_which_turned_images_are_read_as_stored(tmp_path: Path) -> None:
    report = report_of(tmp_path, 6, [1, 1, 5, 5])
    assert "a.png); they are read as stored" in report.warnings[0]
    assert not report.problems


def test_boxes_of_the_turned_image_name_the_swapped_size(tmp_path: Path) -> None:
    report = report_of(tmp_path, 6, [5, 32, 20, 6])  # inside 30x40, below 40x30
    assert "write 30x40" in told(report)
    assert "width and height as stored, 40x30" in told(report)


@pytest.mark.parametrize("repair", [False, True])
def test_boxes_of_the_turned_image_are_not_repaired(tmp_path: Path, repair: bool) -> None:
    report_of(tmp_path, 6, [5, 32, 20, 6])
    with pytest.raises(AdaptError, match="write 30x40"):
        load_split(tmp_path / "set", "train", repair=repair)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_refused_by_everything_that_opens_images(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"gray{suffix}"
    Image.fromarray(np.full((30, 40), 40000, dtype=np.uint16)).save(path)
    assert find_images([tmp_path]) == [path]
    with pytest.raises(AdaptError, match=rf"gray{suffix} has pixels of mode I;16"):
        open_image(path)
    with pytest.raises(AdaptError, match=r"convert it to 8 bits a channel .`adapt data check`"):
        read_image(CocoImage(1, path, 40, 30))


def test_colour_of_sixteen_bits_is_its_upper_eight(tmp_path: Path) -> None:
    """Pillow reads such files and writes none."""
    rows = (b"\0" + np.full((4, 3), 40000, ">u2").tobytes()) * 2
    chunks = {
        b"IHDR": pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0),
        b"IDAT": compress(rows),
        b"IEND": b"",
    }
    body = (pack(">I", len(d)) + k + d + pack(">I", crc32(k + d)) for k, d in chunks.items())
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))
    assert np.unique(np.asarray(open_image(tmp_path / "a.png"))) == [40000 >> 8]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_eight_bit_mode_is_opened_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr", "PA") else "x.png")
    Image.new("RGB", (4, 3), "white").convert("RGBA" if mode == "PA" else mode).save(path)
    image = open_image(path)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (255, 255, 255))


def test_a_large_image_names_the_limit_and_how_to_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photo(tmp_path / "x.png", 1, (2000, 1000))
    monkeypatch.setenv("ADAPT_MAX_MEGAPIXELS", "1.5")
    with pytest.raises(AdaptError, match=r"has 2 megapixels, more than the limit of 1.5; .*ADAPT_"):
        open_image(path)
    monkeypatch.setenv("ADAPT_MAX_MEGAPIXELS", "many")
    with pytest.raises(AdaptError, match="must be a positive number, got 'many'"):
        open_image(path)


def test_an_image_above_pillows_own_limit_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (14_000, 13_000)).save(tmp_path / "x.png")  # 182 megapixels
    assert decode(tmp_path / "x.png").size == (14_000, 13_000)


def test_companions_of_macos_are_no_images(tmp_path: Path) -> None:
    path = photo(tmp_path / "x.png", 1, (4, 3))
    (tmp_path / "._x.png").write_bytes(b"\x00\x05\x16\x07 not an image")
    assert find_images([tmp_path]) == [path]


def test_a_folder_gives_its_images_whatever_else_it_holds(tmp_path: Path) -> None:
    images = [photo(tmp_path / name, 1, (4, 3)) for name in ("a.PNG", "b.gif", "c.jfif.png")]
    for folder in (".ipynb_checkpoints", "d.jpg"):
        (tmp_path / folder).mkdir()
        photo(tmp_path / folder / "x-checkpoint.png", 1, (4, 3))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_images([tmp_path]) == [*images, tmp_path / "d.jpg" / "x-checkpoint.png"]


def test_photos_that_cannot_be_read_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.HEIC").write_bytes(b"no image")
    with pytest.raises(AdaptError, match=r"x\.HEIC cannot be decoded"):
        open_image(*find_images([tmp_path]))


def test_a_truncated_image_is_one_sentence_everywhere(tmp_path: Path) -> None:
    path = photo(tmp_path / "x.png", 1, (40, 30))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(AdaptError, match=r"x\.png cannot be decoded"):
        open_image(path)
    root = write_set(tmp_path / "set", images=[IMAGE])
    (root / "images" / "a.png").write_bytes(path.read_bytes())
    checked = CliRunner().invoke(app, ["data", "check", str(root), "--split", "train"])
    assert checked.exit_code == 1
    assert "cannot be decoded" in " ".join(checked.stdout.split())
