from pathlib import Path

import pytest
from data_parts import read, told, with_boxes, write_set

from adapt.data.check import check_split
from adapt.data.coco import load_split
from adapt.errors import AdaptError


@pytest.mark.parametrize(
    ("box", "kind", "kept"),
    [
        ([-5, 2, 10, 10], "clipped", [[0, 2, 5, 12]]),
        ([35, 25, 10, 10], "clipped", [[35, 25, 40, 30]]),
        ([5, 5, 0, 3], "left out", []),
        ([5, 5, 3, 0], "left out", []),
        ([50, 5, 3, 3], "left out", []),
        ([5, 30, 3, 3], "left out", []),
        ([9, 9, -3, 4], "left out", []),
        ([1, 2, 3, float("nan")], "left out", []),
        ([1, float("inf"), 3, 4], "left out", []),
    ],
)
def test_unusable_box_is_mended_and_listed(
    tmp_path: Path, box: list[float], kind: str, kept: list[list[float]]
) -> None:
    split = read(with_boxes(tmp_path / "set", box))
    assert split.boxes[0].xyxy.tolist() == kept
    assert split.boxes[0].areas.tolist() == [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in kept]
    assert [(problem.image_id, problem.remedy) for problem in split.problems] == [(7, kind)]
    report = check_split(split)
    assert (report.clipped_boxes, report.dropped_boxes) == (kind == "clipped", kind == "left out")
    assert str(box) in told(report)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 0, 3], r"train\.json has the box \[5, 5, 0, 3\] of no size"),
        ([9, 9, -3, 4], r"train\.json has the box \[9, 9, -3, 4\] of negative size"),
        ([1, 2, float("nan"), 4], r"has the box \[1, 2, nan, 4\] of numbers that are not finite"),
    ],
)
def test_strict_loading_refuses_what_would_be_mended(
    tmp_path: Path, box: list[float], message: str
) -> None:
    root = with_boxes(tmp_path / "set", box)
    with pytest.raises(AdaptError, match=message):
        load_split(root, "train")


def test_a_split_tells_how_many_boxes_were_cut_and_left_out(tmp_path: Path) -> None:
    split = read(with_boxes(tmp_path / "set", [-5, 2, 10, 10], [5, 5, 0, 3]))
    assert "1 were cut at the border of their image and 1 left out" in split.repaired()
    assert load_split(write_set(tmp_path / "sound"), "train").repaired() == ""


def test_box_within_one_pixel_of_the_border_is_left_alone(tmp_path: Path) -> None:
    split = load_split(with_boxes(tmp_path / "set", [-0.5, 2, 41, 10]), "train")
    assert split.boxes[0].xyxy.tolist() == [[-0.5, 2, 40.5, 12]]
