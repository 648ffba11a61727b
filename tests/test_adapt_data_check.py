import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_parts import IMAGE, annotation, content, read, told, write_set
from PIL import Image
from typer.testing import CliRunner

from adapt.data.check import DETECTIONS, check_data, check_split, inspected
from adapt.data.coco import load_split
from adapt.detector.config import RetinaNetConfig
from cli import app


def test_report_counts_boxes_by_class_size_and_kind(tmp_path: Path) -> None:
    entries = [
        annotation(area=100),
        annotation(area=100),
        annotation(area=2000, bbox=[0, 0, 40, 30]),
        annotation(area=10000, bbox=[0, 0, 40, 29]),
        annotation(iscrowd=1),
    ]
    report = check_split(load_split(write_set(tmp_path / "set", annotations=entries), "train"))
    assert report.boxes_per_class == {"dog": 0, "cat": 4}
    assert report.boxes_per_size == {"small": 2, "medium": 1, "large": 1}
    assert (report.boxes, report.crowd_boxes, report.empty_images) == (5, 1, 1)
    assert report.warnings[-1].endswith("no box of 1 classes (dog); no AP can be given for them")


def test_report_counts_copies_of_a_box_but_not_crowds_around_it(tmp_path: Path) -> None:
    entries = [annotation(), annotation(), annotation(iscrowd=1), annotation(category_id=5)]
    report = check_split(load_split(write_set(tmp_path / "set", annotations=entries), "train"))
    assert report.duplicate_boxes == 1
    assert "repeats 1 boxes" in report.warnings[0]


def test_report_is_json_and_progress_reaches_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    split = load_split(write_set(tmp_path / "set"), "train")
    report = check_split(split, inspected(split, lambda *done: calls.append(done[:2])))
    assert calls == [(1, 2), (2, 2)]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_report_finds_missing_corrupt_and_resized_images(tmp_path: Path) -> None:
    root = write_set(
        tmp_path / "set", images=[IMAGE | {"id": k, "file_name": f"{k}.jpg"} for k in (1, 2, 7)]
    )
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "images" / "2.jpg")
    data = (root / "images" / "2.jpg").read_bytes()
    (root / "images" / "2.jpg").write_bytes(data[: len(data) // 2])
    Image.new("RGB", (41, 30)).save(root / "images" / "7.jpg")
    report = check_split(load_split(root, "train"))
    assert (report.unreadable_images, report.mismatched_images) == (2, 1)
    fragments = ("1.jpg does not exist", "2.jpg cannot be decoded", "7.jpg is 41x30 pixels")
    for fragment, problem in zip(fragments, report.problems, strict=True):
        assert fragment in problem.examples[0]


def test_split_without_boxes_is_a_problem(tmp_path: Path) -> None:
    report = check_split(load_split(write_set(tmp_path / "set", annotations=[]), "train"))
    assert "holds no boxes" in report.problems[0].examples[0]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "crowds"),
    [
        ("bccd", "train", 205, 2804, 0),
        ("bccd", "test", 72, 945, 0),
        ("tiny_coco", "train", 50, 470, 5),
        ("tiny_coco", "val2017", 50, 382, 5),
    ],
)
def test_real_data_is_sound(
    shared_data: Path, name: str, split: str, images: int, boxes: int, crowds: int
) -> None:
    report = check_split(load_split(shared_data / name, split))
    assert (report.images, report.boxes, report.crowd_boxes) == (images, boxes, crowds)
    assert not report.problems


def spoilt(root: Path) -> Path:
    """Three boxes of negative size, two with NaN, one of no size, one that sticks out."""
    nan = float("nan")
    boxes = [[11, 9, -5, -6], [12, 9, -5, -6], [13, 9, -5, -6], [1, 2, nan, 4], [2, 2, nan, 4]]
    boxes += [[5, 5, 3, 0], [35, 25, 10, 10], [1, 1, 5, 5]]
    entries = [annotation(id=k, bbox=box) for k, box in enumerate(boxes, start=1)]
    return write_set(root, annotations=entries)


def test_report_tells_all_problems_by_kind_and_what_repairing_does(tmp_path: Path) -> None:
    report = check_split(read(spoilt(tmp_path / "set")))
    assert [(kind.count, kind.kind, kind.repair) for kind in report.problems] == [
        (3, "boxes of negative size", "left out"),
        (2, "boxes of numbers that are not finite", "left out"),
        (1, "boxes of no size", "left out"),
        (1, "boxes that stick out of their image", "clipped"),
    ]
    assert "annotation 1 in" in report.problems[0].examples[0]
    assert "data.repair = true" in report.problems[0].fix
    assert (report.dropped_boxes, report.clipped_boxes, report.boxes) == (6, 1, 2)


def test_examples_are_few_and_the_rest_is_counted(tmp_path: Path) -> None:
    images = [IMAGE | {"id": k, "file_name": f"{k}.png"} for k in range(9)]
    report = check_split(read(write_set(tmp_path / "set", images=images, annotations=[])))
    (missing, empty) = report.problems
    assert (missing.count, len(missing.examples)) == (9, 3)
    assert "... and 6 more" in str(missing)
    assert "data.repair" not in str(missing)
    assert empty.kind == "splits without boxes"


def test_repair_leaves_out_what_the_report_says(tmp_path: Path) -> None:
    split = load_split(spoilt(tmp_path / "set"), "train", repair=True)
    assert split.boxes[0].xyxy.tolist() == [[35, 25, 40, 30], [1, 1, 6, 6]]


def test_a_missing_split_does_not_hide_the_problems_of_others(tmp_path: Path) -> None:
    reports = check_data(spoilt(tmp_path / "set")).reports
    assert len(reports["train"].problems) == 4
    assert "no split 'val'" in told(reports["val"])
    assert "data.repair" not in told(reports["val"])
    assert reports["val"].shown().keys() == {"problems", "warnings"}


def two_splits(root: Path, **val: Any) -> Path:
    write_set(root)
    changes = {"images": [IMAGE | {"file_name": "c.png"}]} | val
    (root / "annotations" / "val.json").write_text(json.dumps(content(**changes)))
    Image.new("RGB", (40, 30)).save(root / "images" / "c.png")
    return root


def test_splits_that_fit_each_other_are_sound(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "unused"}]
    root = two_splits(
        tmp_path / "set", categories=categories, annotations=[annotation(category_id=2)]
    )
    reports = check_data(root).reports
    assert not any(report.problems for report in reports.values())
    assert not any("training images too" in text for text in reports["val"].warnings)


def test_classes_unknown_to_train_are_named(tmp_path: Path) -> None:
    categories = [{"id": 5, "name": "Dog"}, {"id": 9, "name": "bird"}]
    report = check_data(two_splits(tmp_path / "set", categories=categories)).reports["val"]
    text = told(report)
    assert "val.json has boxes of Dog, bird" in text
    assert "train.json has the classes dog, cat (in another case, Dog is dog)" in text


def test_classes_without_a_training_box_are_told_as_what_they_are(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "set")
    cats = content(annotations=[annotation()])
    (root / "annotations" / "train.json").write_text(json.dumps(cats))
    found = check_data(root)
    (of_train,), (of_val,) = (found.reports[name].warnings for name in ("train", "val"))
    assert of_train.endswith("train.json has no box of 1 classes (dog); nothing teaches them")
    assert "val.json has boxes of dog, and" in of_val
    assert "no training teaches them" in of_val
    assert found.verdict == "Nothing stops a training or an evaluation. 2 warnings."


def test_val_images_that_are_trained_on_are_told(tmp_path: Path) -> None:
    report = check_data(two_splits(tmp_path / "set", images=[IMAGE])).reports["val"]
    assert "1 images of" in report.warnings[-1]
    assert "are training images too" in report.warnings[-1]


def test_a_test_split_is_checked_where_there_is_one(tmp_path: Path) -> None:
    root = two_splits(tmp_path / "set")
    assert check_data(root).reports.keys() == {"train", "val"}
    (root / "annotations" / "val.json").rename(root / "annotations" / "test.json")
    assert check_data(root).reports.keys() == {"train", "val", "test"}


def test_more_boxes_than_a_detector_returns_are_told(tmp_path: Path) -> None:
    boxes = [annotation(bbox=[k % 30, k // 30, 5, 5]) for k in range(225)]
    report = check_split(read(write_set(tmp_path / "set", annotations=boxes)))
    (warning,) = [text for text in report.warnings if "more than" in text]
    assert "1 images" in warning
    assert "hold more than 100 boxes, up to 225" in warning
    assert RetinaNetConfig().detections == DETECTIONS


def test_images_listed_twice_and_names_of_another_case_are_told(tmp_path: Path) -> None:
    images = [IMAGE, IMAGE | {"id": 8}]
    categories = [{"id": 5, "name": "Cat"}, {"id": 9, "name": "cat"}]
    root = write_set(tmp_path / "set", images=images, categories=categories)
    warnings = check_split(read(root)).warnings
    assert "lists 1 image files more than once" in warnings[0]
    assert "Cat, cat of" in warnings[-1]


@pytest.mark.parametrize(
    "name", ["A.PNG", "a.jpg", "C:\\photos\\a.png", "/photos/a.png", "x/a.png"]
)
def test_a_missing_image_names_the_file_that_may_be_meant(tmp_path: Path, name: str) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"file_name": name}])
    text = told(check_split(read(root)))
    assert "missing images" in text
    assert f"is {root / 'images' / 'a.png'} meant?" in text


@pytest.mark.parametrize(
    "name", ["a\0.png", "a" * 5000 + ".png", "\ud800.png", "http://x.org/a.png"]
)
def test_any_text_may_be_the_name_of_a_missing_image(tmp_path: Path, name: str) -> None:
    root = write_set(tmp_path / "set", images=[IMAGE | {"file_name": name}])
    annotations = root / "annotations"
    (annotations / "val.json").write_bytes((annotations / "train.json").read_bytes())
    for report in check_data(root).reports.values():
        assert [kind.kind for kind in report.problems] == ["missing images"]


def test_absolute_names_and_links_are_followed(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set")
    (root / "images" / "link.PNG").symlink_to(root / "images" / "a.png")
    names = [str(root / "images" / "a.png"), "link.PNG"]
    images = [IMAGE | {"id": 7 + k, "file_name": name} for k, name in enumerate(names)]
    (root / "annotations" / "train.json").write_text(json.dumps(content(images=images)))
    assert not check_split(read(root)).problems


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_reports_every_problem_and_fails(tmp_path: Path, as_json: bool) -> None:
    arguments = ["data", "check", str(spoilt(tmp_path / "set")), *(["--json"] if as_json else [])]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)
    assert result.exit_code == 1
    assert "no split 'val'" in result.stdout
    if as_json:
        (first, *_) = json.loads(result.stdout)["train"]["problems"]
        assert (first["count"], first["repair"]) == (3, "left out")
    else:
        assert (
            "3 boxes of negative size; correct them, or data.repair = true leaves them out"
            in result.stdout
        )
        assert result.stdout.endswith("8 problems stop a training or an evaluation. 1 warning.\n")


def test_the_command_ends_with_its_verdict_and_the_page(tmp_path: Path) -> None:
    page = tmp_path / "check.html"
    arguments = ["data", "check", str(two_splits(tmp_path / "set")), "--page", str(page)]
    verdict, place = CliRunner().invoke(app, arguments).stdout.splitlines()[-2:]
    assert verdict.startswith("Nothing stops a training or an evaluation.")
    assert place == f"page: {page}"
