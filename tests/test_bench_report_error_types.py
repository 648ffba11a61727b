"""One error in one image costs what correcting it brings, and matches are pycocotools'."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from adapt.data.coco import CocoSplit, ImageBoxes
from adapt.data.evaluate import Detections, coco_evaluation, evaluate
from bench.report.error_types import TYPES, average_precision, error_costs, judge
from bench.report.matches import Matches, agreement, best_threshold, matches

OBJECT = (10.0, 10.0, 30.0, 30.0)  # of class 0 in the only image
SHIFTED = (10.0, 22.0, 30.0, 42.0)  # IoU 0.25
ELSEWHERE = (60.0, 60.0, 80.0, 80.0)
Box = tuple[float, float, float, float]
Row = tuple[Box, int, float]  # corners, class, score


def held(split: CocoSplit, objects: Sequence[tuple[Box, int]], found: Sequence[Row]) -> Matches:
    """Return what is matched in one image of a split."""
    corners = np.array([box for box, _ in objects]).reshape(-1, 4)
    labels = np.array([label for _, label in objects], dtype=np.int64)
    crowd, areas = np.zeros(len(objects), dtype=bool), np.full(len(objects), 400.0)
    one = replace(
        split, images=split.images[:1], boxes=(ImageBoxes(corners, labels, crowd, areas),)
    )
    boxes, classes, scores = (np.array([row[at] for row in found]) for at in (0, 1, 2))
    detections = [Detections(split.images[0].id, boxes.reshape(-1, 4), scores, classes)]
    return matches(coco_evaluation(one, detections if found else []))


# Found in an image with one object, and what it costs: what is left is perfect. Where a wrong
# detection of a higher score stands before the right one, AP is 1/2.
CASES: dict[str, tuple[list[Row], float]] = {
    "class": ([(OBJECT, 1, 0.9)], 1.0),
    "location": ([(SHIFTED, 0, 0.9)], 1.0),
    "both": ([(SHIFTED, 1, 0.9)], 0.0),  # it is removed, which finds nothing
    "background": ([(ELSEWHERE, 0, 0.9), (OBJECT, 0, 0.8)], 0.5),
    "missed": ([], 1.0),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_single_error_costs_what_correcting_it_brings(kind: str, tiny_data: CocoSplit) -> None:
    found, cost = CASES[kind]
    costs = error_costs(held(tiny_data, [(OBJECT, 0)], found)).costs
    assert costs.pop(kind) == pytest.approx(cost)
    if kind != "both":  # its object is missed, too
        assert set(costs.values()) == {0.0}


def test_a_duplicate_costs_the_precision_of_what_comes_after_it(tiny_data: CocoSplit) -> None:
    objects = [(OBJECT, 0), (ELSEWHERE, 0)]
    found = [(OBJECT, 0, 0.9), (OBJECT, 0, 0.8), (ELSEWHERE, 0, 0.7)]
    costs = error_costs(held(tiny_data, objects, found))
    # Recall 0.5 at precision 1 (51 of 101 points), then recall 1 at precision 2/3.
    assert costs.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert costs.costs["duplicate"] == pytest.approx(1 - costs.ap50)


def test_only_the_best_of_several_is_corrected(tiny_data: CocoSplit) -> None:
    found = [(SHIFTED, 0, 0.9), (SHIFTED, 0, 0.8)]
    assert error_costs(held(tiny_data, [(OBJECT, 0)], found)).costs["location"] == 1.0


def test_an_object_that_is_found_needs_no_correction(tiny_data: CocoSplit) -> None:
    found = [(SHIFTED, 0, 0.9), (OBJECT, 0, 0.8)]
    costs = error_costs(held(tiny_data, [(OBJECT, 0)], found))
    assert costs.ap50 == pytest.approx(0.5)
    assert costs.costs["location"] == pytest.approx(0.5)  # the wrong one is removed


def test_types_are_those_of_the_paper(tiny_data: CocoSplit) -> None:
    found = [
        *[(OBJECT, 0, 0.9), (OBJECT, 0, 0.8), (OBJECT, 1, 0.7)],
        *[(SHIFTED, 0, 0.6), (SHIFTED, 1, 0.5), (ELSEWHERE, 0, 0.4)],
    ]
    judged = judge(held(tiny_data, [(OBJECT, 0)], found))
    by_score = dict(zip(judged.found.detections.scores.tolist(), judged.types, strict=True))
    kinds = [by_score[score] for _, _, score in found]
    assert kinds == ["right", "duplicate", "class", "location", "both", "background"]
    assert {*kinds, "missed"} == {"right", *TYPES}


def test_ap_before_corrections_is_pycocotools(tiny_data: CocoSplit) -> None:
    chance = np.random.default_rng(0)
    detections = [
        Detections(
            image.id,
            np.repeat(boxes.xyxy, 3, axis=0) + chance.normal(0, 4, (3 * len(boxes), 4)),
            chance.random(3 * len(boxes)).round(1),  # with equal scores
            np.repeat(boxes.labels, 3) * chance.integers(0, 2, 3 * len(boxes)),
        )
        for image, boxes in zip(tiny_data.images, tiny_data.boxes, strict=True)
    ]
    expected = evaluate(tiny_data, detections).ap50
    assert 0.05 < expected < 0.95
    found = matches(coco_evaluation(tiny_data, detections))
    assert error_costs(found).ap50 == pytest.approx(expected, abs=1e-9)
    assert min(error_costs(found).costs.values()) > -1e-9


@pytest.mark.parametrize(
    ("scores", "right", "objects", "expected"),
    [
        ([0.9, 0.8], [True, True], 2, 1.0),
        ([0.9, 0.8], [False, True], 1, 0.5),
        ([0.9], [True], 2, 51 / 101),
        ([], [], 3, 0.0),
        ([], [], 0, 1.0),
        ([0.9], [False], 0, 0.0),
    ],
)
def test_average_precision(
    scores: list[float], right: list[bool], objects: int, expected: float
) -> None:
    values = np.array(scores, dtype=np.float64), np.array(right, dtype=bool)
    assert average_precision(*values, objects) == pytest.approx(expected)


def test_images_are_compared_at_the_score_of_the_best_f1(tiny_data: CocoSplit) -> None:
    objects = [(OBJECT, 0), (ELSEWHERE, 0)]
    found = [(OBJECT, 0, 0.9), (ELSEWHERE, 0, 0.6), (SHIFTED, 0, 0.3)]
    of = held(tiny_data, objects, found)
    assert best_threshold(of) == 0.6
    assert agreement(of, 0.6, 1).tolist() == [1.0]
    assert agreement(of, 0.0, 1).tolist() == [2 * 2 / (3 + 2)]
    assert agreement(of, 1.0, 2).tolist() == [0.0, 1.0]  # the second has nothing, and finds nothing
