"""faster-coco-eval computes what pycocotools computes, or is not used."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_adapt_data_evaluate import found, split_of, squares

from adapt.data import coco_library
from adapt.data.coco import CocoSplit, ImageBoxes, load_split
from adapt.data.coco_library import PYCOCOTOOLS, fastest
from adapt.data.evaluate import Detections, coco_evaluation, evaluate

INSTALL = "faster-coco-eval is not installed: pip install 'adapt-detector[fast-eval]'"
LIMITS = (1, 7, 100, 300)  # detections per image


@pytest.fixture
def _fast() -> None:
    pytest.importorskip("faster_coco_eval", reason=INSTALL)
    assert fastest() is not PYCOCOTOOLS


def assert_equal(split: CocoSplit, detections: list[Detections]) -> None:
    for limit in LIMITS:
        slow, fast = (
            coco_evaluation(split, detections, limit, library).eval
            for library in (PYCOCOTOOLS, fastest())
        )
        for values in ("precision", "recall", "scores"):
            np.testing.assert_allclose(fast[values], slow[values], rtol=0, atol=1e-12)


def random_boxes(chance: np.random.Generator, number: int, grid: float) -> np.ndarray[Any, Any]:
    """Boxes on a grid: IoUs that are equal or a threshold, areas on the border of two sizes."""
    corners = np.round(chance.uniform(0, 300, (number, 2)) / grid) * grid
    sides = np.ceil(chance.exponential(60, (number, 2)) / grid) * grid
    return np.concatenate([corners, corners + sides], axis=1)


def random_truth(chance: np.random.Generator, grid: float) -> ImageBoxes:
    """None to twelve boxes of three classes, some of them crowds, areas less than the boxes'."""
    number = int(chance.choice([0, 1, 3, 12]))
    boxes = random_boxes(chance, number, grid)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * chance.choice([0.6, 1])
    return ImageBoxes(boxes, chance.integers(0, 3, number), chance.random(number) < 0.2, areas)


def random_detections(
    chance: np.random.Generator, image_id: int, truth: ImageBoxes, grid: float
) -> Detections:
    """None to 130, at and near the true boxes and elsewhere, with few different scores."""
    number = int(chance.choice([0, 1, 20, 130]))
    boxes = random_boxes(chance, number, grid)
    if len(truth):
        near = chance.random(number) < 0.7
        shift = np.round(chance.normal(0, 4, (number, 4)) / grid) * grid
        boxes[near] = (truth.xyxy[chance.integers(0, len(truth), number)] + shift)[near]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])  # some of no size
    scores = np.ceil(chance.random(number) * (levels := chance.choice([3, 10, 1e6]))) / levels
    return Detections(image_id, boxes, scores.astype(np.float32), chance.integers(0, 3, number))


@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize("seed", range(20))
def test_precisions_and_recalls_of_random_detections_are_those_of_pycocotools(seed: int) -> None:
    """Crowds, images without boxes or detections, equal scores, few and many detections."""
    chance = np.random.default_rng(seed)
    grid = chance.choice([0.25, 1, 8])
    boxes = [squares((0, 0)), *(random_truth(chance, grid) for _ in range(8))]
    split = replace(split_of(*boxes), class_names=("a", "b", "c"), category_ids=(1, 2, 3))
    detections = [random_detections(chance, k, of, grid) for k, of in enumerate(boxes)]
    assert_equal(split, detections)


@pytest.mark.usefixtures("_fast")
def test_without_detections_all_is_missed_in_both() -> None:
    assert_equal(split_of(squares((0, 0)), squares()), [])


@pytest.mark.shared
@pytest.mark.usefixtures("_fast")
@pytest.mark.parametrize(
    ("name", "part"), [("bccd", "val"), ("bccd", "test"), ("tiny_coco", "val")]
)
def test_precisions_and_recalls_on_real_boxes_are_those_of_pycocotools(
    shared_data: Path, name: str, part: str
) -> None:
    split, chance = load_split(shared_data / name, part), np.random.default_rng(1)
    detections = []
    for image, boxes in zip(split.images, split.boxes, strict=True):
        thrice = np.concatenate(
            [boxes.xyxy + chance.normal(0, d, (len(boxes), 4)) for d in (0, 3, 9)]
        )
        thrice[:, 2:] = np.maximum(thrice[:, 2:], thrice[:, :2])
        scores = np.round(chance.random(len(thrice)), 2)
        detections.append(Detections(image.id, thrice, scores, np.tile(boxes.labels, 3)))
    assert_equal(split, detections)


@pytest.mark.usefixtures("_fast")
def test_it_evaluates_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import faster_coco_eval

    used = []
    evaluated = faster_coco_eval.COCOeval_faster.evaluate
    monkeypatch.setattr(
        faster_coco_eval.COCOeval_faster, "evaluate", lambda of: (used.append(of), evaluated(of))
    )
    boxes = squares((0, 0))
    assert evaluate(split_of(boxes), [found(0, boxes)]).ap == pytest.approx(1)
    assert len(used) == 1


@pytest.mark.parametrize("version", [None, "1.7.2", "2.0.0"])
def test_versions_that_were_not_compared_are_not_used(
    version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version_of(name: str) -> str:
        if version is None:
            raise coco_library.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(coco_library.metadata, "version", version_of)
    assert fastest() is PYCOCOTOOLS
