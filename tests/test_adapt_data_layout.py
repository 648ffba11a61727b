import json
from pathlib import Path

import pytest
from data_parts import IMAGE, content, read, write_set

from adapt.data.check import check_split
from adapt.data.coco import load_place, load_split
from adapt.data.formats.place import Place
from adapt.data.layout import usual_split
from adapt.errors import AdaptError


@pytest.mark.parametrize(
    ("file", "folder", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("annotations/train.json", "images", "train"),
        ("annotations/train.json", "images/train", "train"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
    ],
)
def test_layout_is_recognised(tmp_path: Path, file: str, folder: str, split: str) -> None:
    for place in ((tmp_path / file).parent, tmp_path / folder):
        place.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(json.dumps(content()))
    found = load_split(tmp_path, split)
    assert (found.annotations, found.folder) == (tmp_path / file, tmp_path / folder)


def test_captions_beside_the_instances_are_no_splits(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    for name in ("instances_train2017", "captions_val2017"):
        (root / "annotations" / f"{name}.json").write_text(json.dumps(content()))
    with pytest.raises(AdaptError, match=r"\(train2017\)"):
        load_split(root, "val")


def test_ap_is_reported_of_the_test_split_where_there_is_one(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    assert usual_split(root) == "val"
    (root / "annotations" / "test.json").write_text(json.dumps(content()))
    assert usual_split(root) == "test"


def test_missing_split_lists_what_was_looked_for_and_what_exists(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"no split 'test'.*instances_test\*.*\(train\)"):
        load_split(write_set(tmp_path / "set"), "test")


def test_two_splits_of_one_name_must_be_told_apart(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for year in (2014, 2017):
        (tmp_path / "annotations" / f"instances_train{year}.json").write_text("{}")
    with pytest.raises(AdaptError, match=r"2 splits named 'train'.*train2014, train2017"):
        load_split(tmp_path, "train")


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="nowhere does not exist"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(AdaptError, match=r"none\.json does not exist"):
        load_place(Place(tmp_path / "none.json", tmp_path))
    root = write_set(tmp_path / "set")
    with pytest.raises(AdaptError, match=r"image folder .*gone of .*train\.json does not exist"):
        load_place(Place(root / "annotations" / "train.json", root / "gone"))


@pytest.mark.parametrize(
    ("annotated", "stored"),
    [
        ("day 1\\a.png", "day 1/a.png"),
        ("images/a.png", "a.png"),
        ("set/images/a.png", "a.png"),
        ("/a.png", "a.png"),
        ("/images/a.png", "a.png"),
        ("my%20a.png", "my a.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("images\\my%20a.png", "my a.png"),
    ],
)
def test_file_names_as_tools_write_them(tmp_path: Path, annotated: str, stored: str) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"file_name": annotated}])
    path = root / "images" / stored
    path.parent.mkdir(exist_ok=True)
    (root / "images" / "b.png").rename(path)
    (root / "images" / "a.png").unlink(missing_ok=True) if stored != "a.png" else None
    assert not check_split(read(root)).problems
