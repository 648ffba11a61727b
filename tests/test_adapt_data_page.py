"""The page of a data set is one file, and shows what is wrong too."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from data_parts import annotation, content, write_set
from PIL import Image
from typer.testing import CliRunner

from adapt.data.check import check_data
from adapt.data.coco import load_split
from adapt.data.images import InputSize
from adapt.data.page import write_page
from adapt.detector.fitted_boxes import FittedBoxes
from adapt.detector.objects import ANCHOR_SIZES
from cli import app


def page_of(root: Path, folder: Path) -> str:
    path = folder / "new" / "page.html"
    write_page(check_data(root), root, path)
    return path.read_text()


def test_a_page_needs_no_other_file_and_shows_every_split(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for name in ("val", "test"):
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content()))
    text = page_of(root, tmp_path)
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "<script" not in text
    assert text.count("<svg") == 2
    assert text.count("data:image/jpeg") == 3
    for name in ("train", "val", "test"):
        assert f"<td>{name}</td><td>2</td><td>1</td><td>2</td>" in text
    assert "Nothing stops a training" in text
    assert "2 images of" in unescape(text)  # of val and test, which are training images too


def test_what_is_wrong_is_on_the_page_and_does_not_stop_it(tmp_path: Path) -> None:
    root = write_set(
        tmp_path / "set",
        annotations=[annotation(bbox=[1, 2, 0, 5]), annotation(id=2, image_id=3)],
    )
    (root / "images" / "a.png").write_text("no image")
    text = unescape(page_of(root, tmp_path))
    assert "problems stop a training or an evaluation" in text
    assert "boxes of no size" in text
    assert "a.png cannot be decoded" in text
    assert "no split 'val'" in text


def test_a_set_without_readable_images_or_boxes_has_a_page(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", annotations=[])
    assert "<svg" not in page_of(root, tmp_path / "1")
    for name in ("a.png", "b.png"):
        (root / "images" / name).unlink()
    assert "does not exist" in page_of(root, tmp_path / "2")


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    evil = {"id": 9, "name": "<b onclick='x'>$cat$ & co</b>"}
    root = write_set(tmp_path / "set", categories=[evil, {"id": 5, "name": "dog"}])
    text = page_of(root, tmp_path)
    assert "<b onclick" not in text
    assert "&lt;b onclick=" in text


def test_look_alikes_are_shown_side_by_side(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "images" / "train").mkdir()
    (root / "images" / "val").mkdir()
    gradient = Image.linear_gradient("L").resize((40, 30)).rotate(90).convert("RGB")
    other = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    for folder in ("train", "val"):
        gradient.save(root / "images" / folder / "a.png")
        other.rotate(180 * (folder == "val")).save(root / "images" / folder / "b.png")
    (root / "annotations" / "val.json").write_text(json.dumps(content()))
    text = page_of(root, tmp_path)
    assert "look like training images" in text
    assert text.count("<figure>") >= 3


@pytest.mark.parametrize("problem", [False, True])
def test_data_check_writes_the_page_and_keeps_its_exit_code(problem: bool, tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "annotations" / "val.json").write_text(
        json.dumps(content(annotations=[] if problem else [annotation()]))
    )
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["data", "check", str(root), "--page", str(page)])
    assert result.exit_code == int(problem), result.output
    assert page.read_text().startswith("<!doctype html>")


def test_a_page_shows_boxes_beside_anchors_of_an_input(tmp_path: Path) -> None:
    root, page = write_set(tmp_path / "set"), tmp_path / "page.html"
    arguments = ["data", "check", str(root), "--split", "train", "--page", str(page), "--json"]
    found = CliRunner().invoke(app, [*arguments, "--size", "64x96", "--anchor", "8"])
    assert found.exit_code == 0, found.output
    anchors = json.loads(found.stdout)["anchors"]
    assert (anchors["input"], anchors["anchor_size"]) == ("64x96", 8)
    text = page.read_text()
    assert text.count("<svg") == 3
    assert f"of {anchors['recall']:.1%} of the boxes" in text
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert page.read_text().count("<svg") == 2


def test_the_best_anchor_is_taken_if_none_is_given(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    size = InputSize(64, 96)
    best = FittedBoxes.of(split, size)
    others = [FittedBoxes.of(split, size, anchor).recall for anchor in ANCHOR_SIZES]
    assert best.recall == max(others) == FittedBoxes.of(split, size, best.anchor_size).recall


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--anchor", "16"], "--anchor 16 needs an input, such as --size 256x320"),
        (["--size", "256"], "--size must be like 256x320"),
    ],
)
def test_anchors_without_an_input_are_refused(
    options: list[str], message: str, tmp_path: Path
) -> None:
    found = CliRunner().invoke(app, ["data", "check", str(tmp_path), *options])
    assert found.exit_code == 1
    assert message in " ".join(found.output.split())
