"""Boxes in another form than COCO's are refused, with the form they look like."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_parts import annotation, read, write_set

from adapt.data.check import check_split
from adapt.data.coco import load_split
from adapt.errors import AdaptError

Form = Callable[[float, float, float, float], list[float]]
FORMS: dict[str, Form] = {
    r"\[x1, y1, x2, y2\] of two corners": lambda x, y, w, h: [x, y, x + w, y + h],
    r"\[x, y, width, height\] of the middle": lambda x, y, w, h: [x + w / 2, y + h / 2, w, h],
    r"fractions of the image": lambda x, y, w, h: [x / 40, y / 30, w / 40, h / 30],
}


def with_random_boxes(root: Path, form: Form, number: int) -> Path:
    chance = np.random.default_rng(0)
    boxes = []
    for _ in range(number):
        w, h = chance.uniform(3, 15, 2)
        boxes.append(form(chance.uniform(0, 40 - w), chance.uniform(0, 30 - h), w, h))
    return write_set(root, annotations=[annotation(bbox=box) for box in boxes])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repair", [False, True])
def test_the_likely_form_is_named_and_not_repaired(tmp_path: Path, form: str, repair: bool) -> None:
    root = with_random_boxes(tmp_path / "set", FORMS[form], 40)
    with pytest.raises(AdaptError, match=rf"the \d+ boxes of .*train.json look like {form}"):
        load_split(root, "train", repair=repair)


def test_boxes_of_coco_are_no_other_form(tmp_path: Path) -> None:
    root = with_random_boxes(tmp_path / "set", lambda *box: list(box), 40)
    assert not read(root).problems


def test_a_few_boxes_may_look_like_corners_by_chance(tmp_path: Path) -> None:
    boxes = [annotation(bbox=[18, 14, 39, 29]), annotation()]
    kinds = [problem.kind for problem in read(write_set(tmp_path, annotations=boxes)).problems]
    assert kinds == ["boxes that stick out of their image"]


@pytest.mark.parametrize("size", [(20, 15), (26, 20)])
def test_boxes_of_smaller_copies_of_the_images_are_doubted(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    factors = size[0] / 40, size[1] / 30
    form = lambda x, y, w, h: [x * factors[0], y * factors[1], w * factors[0], h * factors[1]]  # noqa: E731
    split = read(with_random_boxes(tmp_path / "set", form, 40))
    assert not split.problems
    assert "all 40 boxes of" in split.cornered()
    assert split.cornered() in split.doubts(100)
    assert split.cornered() in check_split(split).warnings


@pytest.mark.parametrize("number", [5, 40])
def test_boxes_all_over_the_images_and_few_boxes_are_not_doubted(
    tmp_path: Path, number: int
) -> None:
    scale = 1 if number == 40 else 0.5
    form = lambda *box: [value * scale for value in box]  # noqa: E731
    assert read(with_random_boxes(tmp_path / "set", form, number)).cornered() == ""
