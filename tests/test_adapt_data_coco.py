from pathlib import Path

import pytest
from data_parts import annotation, read, with_boxes, write_set

from adapt.data.coco import load_split
from adapt.errors import AdaptError


def test_labels_count_from_zero_by_ascending_category_id(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    assert (split.class_names, split.category_ids) == (("dog", "cat"), (5, 9))
    assert split.boxes[0].labels.tolist() == [1, 0]


def test_boxes_are_corners_and_images_keep_the_order_of_the_file(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    assert split.image_ids == (7, 3)
    assert split.boxes[0].xyxy.tolist() == [[1, 2, 11, 22]] * 2
    assert split.boxes[1].xyxy.shape == (0, 4)


def test_subset_keeps_the_given_order_and_the_problems_of_its_images(tmp_path: Path) -> None:
    split = read(with_boxes(tmp_path / "set", [1, 1, 0, 5]))
    assert split.subset([3, 7]).image_ids == (3, 7)
    assert len(split.subset([3]).boxes[0]) == 0
    assert (len(split.subset([7]).problems), len(split.subset([3]).problems)) == (1, 0)


@pytest.mark.parametrize("image_ids", [[], [7, 8]])
def test_subset_of_unknown_or_no_images_is_refused(tmp_path: Path, image_ids: list[int]) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    with pytest.raises(AdaptError, match="choose at least one of its 2 image ids"):
        split.subset(image_ids)


def test_limit_spreads_over_the_whole_file(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": "a.png", "width": 40, "height": 30} for k in range(9)]
    split = load_split(write_set(tmp_path / "set", images=images), "train")
    assert split.limit(3).image_ids == (0, 4, 8)
    assert split.limit(None) is split


def test_labels_of_other_classes_are_matched_by_name(tmp_path: Path) -> None:
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    boxes = [annotation(category_id=1), annotation(category_id=2)]
    root = write_set(tmp_path / "set", categories=categories, annotations=boxes)
    matched = load_split(root, "train").matched(("bird", "dog", "cat"), "the detector")
    assert matched.boxes[0].labels.tolist() == [2, 1]
    assert matched.class_names == ("bird", "dog", "cat")
    assert matched.category_ids == (None, 2, 1)


def test_classes_without_boxes_need_no_match(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set", annotations=[annotation()]), "train")
    assert split.matched(("cat",), "the detector").category_ids == (9,)


def test_classes_that_only_the_held_out_images_have_are_told_by_name(tmp_path: Path) -> None:
    held_out = load_split(write_set(tmp_path / "val"), "train")  # boxes of dog and cat
    train = load_split(write_set(tmp_path / "set", annotations=[annotation()]), "train")
    assert "has boxes of dog, and " in held_out.untaught(train)  # both files list the class
    assert train.untaught(held_out) == held_out.untaught(held_out) == ""


def test_boxes_of_unknown_classes_are_refused_by_name(tmp_path: Path) -> None:
    split = load_split(write_set(tmp_path / "set"), "train")
    message = r"has boxes of cat, the detector has the classes dog, Cat \(.*cat is Cat\); name them"
    with pytest.raises(AdaptError, match=message):
        split.matched(("dog", "Cat"), "the detector")
