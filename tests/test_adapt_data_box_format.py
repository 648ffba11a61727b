"""Boxes in another form than COCO's are refused, with the form they look like."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_parts import annotation, read, write_set

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
