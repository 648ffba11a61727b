"""A sheet shows images with their boxes, as they are or as a detector trains on them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adapt.data.coco import CocoSplit
from adapt.data.drawing import contact_sheet, draw_boxes
from adapt.data.images import InputSize
from cli import app


def test_boxes_are_drawn_where_they_are() -> None:
    pixels = torch.zeros(3, 50, 60, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 20.0, 40.0, 45.0]])
    drawn = draw_boxes(pixels, boxes, [0], [""])
    assert drawn[0, 20, 10:40].min() == 255  # red
    assert drawn[:, 21:44, 12:39].max() == 0
    assert torch.equal(draw_boxes(pixels, boxes[:0], [], []), pixels)


@pytest.mark.parametrize(("number", "rows", "columns"), [(3, 1, 3), (5, 2, 4), (99, 2, 4)])
def test_a_sheet_has_a_tile_for_every_image(
    number: int, rows: int, columns: int, tiny_data: CocoSplit
) -> None:
    sheet = contact_sheet(tiny_data, number, size=InputSize(64, 96))
    assert sheet.shape == (3, rows * (64 + 4) + 4, columns * (96 + 4) + 4)
    assert torch.equal(sheet, contact_sheet(tiny_data, number, size=InputSize(64, 96)))
    assert not torch.equal(sheet, contact_sheet(tiny_data, number, 1, InputSize(64, 96)))


@pytest.mark.parametrize(
    "options", [[], ["--size", "64x96"], ["--split", "val", "--number", "1"], ["--augment", "crop"]]
)
def test_data_view_writes_a_sheet(options: list[str], tiny_data: CocoSplit, tmp_path: Path) -> None:
    root, out = str(tiny_data.annotations.parents[1]), tmp_path / "new" / "sheet.png"
    result = CliRunner().invoke(app, ["data", "view", root, "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    with Image.open(out) as sheet:
        assert min(sheet.size) > 64


@pytest.mark.parametrize(
    ("size", "message"),
    [("256", "--size must be like 256x320"), ("50x64", "must be a multiple of 32 pixels")],
)
def test_a_wrong_size_is_refused(
    size: str, message: str, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    root = str(tiny_data.annotations.parents[1])
    arguments = ["data", "view", root, "--size", size, "--out", str(tmp_path / "sheet.png")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "sheet.png").exists()
