import io
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from adapt.data.annotated_image import CocoImage
from adapt.data.coco import CocoSplit, ImageBoxes, load_split
from adapt.data.evaluate import Detections, coco_results, detections_to_original, evaluate
from adapt.data.formats.place import Place
from adapt.errors import AdaptError

SIDE = 40.0  # of the squares below: 1600 square pixels, a medium object


def squares(*corners: tuple[float, float], crowd: bool = False) -> ImageBoxes:
    """Squares of class 0 with the given upper left corners."""
    xyxy = np.array([(x, y, x + SIDE, y + SIDE) for x, y in corners]).reshape(-1, 4)
    count = len(xyxy)
    return ImageBoxes(
        xyxy,
        np.zeros(count, dtype=np.int64),
        np.full(count, crowd),
        np.full(count, SIDE**2),
    )


def split_of(*boxes: ImageBoxes) -> CocoSplit:
    images = tuple(CocoImage(k, Path(f"{k}.jpg"), 640, 480) for k in range(len(boxes)))
    return CocoSplit(Place(Path("x.json"), Path()), images, boxes, ("cat", "dog"), (5, 9))


def found(image_id: int, boxes: ImageBoxes, score: float = 0.9) -> Detections:
    return Detections(image_id, boxes.xyxy, np.full(len(boxes), score), boxes.labels)


def test_perfect_detections_reach_one_and_absent_kinds_none() -> None:
    boxes = squares((0, 0), (100, 100))  # the first annotation id is 0, pycocotools' trap
    metrics = evaluate(split_of(boxes), [found(0, boxes)])
    assert (metrics.ap, metrics.ap50, metrics.ap75, metrics.ar100) == pytest.approx((1, 1, 1, 1))
    assert metrics.ap_medium == pytest.approx(1)
    assert (metrics.ap_small, metrics.ap_large) == (None, None)
    assert metrics.to_dict()["per_class"] == {"cat": pytest.approx(1), "dog": None}


def test_no_detections_reach_zero() -> None:
    metrics = evaluate(split_of(squares((0, 0))), [])
    assert (metrics.ap, metrics.ap_medium, metrics.per_class["cat"]) == (0, 0, 0)


def test_iou_decides_at_which_thresholds_a_box_counts() -> None:
    truth = squares((0, 0))
    shifted = squares((SIDE / 4, 0))  # IoU = (3/4) / (5/4) = 0.6: hits at 0.50, 0.55, 0.60
    metrics = evaluate(split_of(truth), [found(0, shifted)])
    assert metrics.ap == pytest.approx(0.3)
    assert (metrics.ap50, metrics.ap75) == pytest.approx((1, 0))


def test_image_without_detections_counts_as_missed() -> None:
    boxes = squares((0, 0))
    metrics = evaluate(split_of(boxes, boxes), [found(0, boxes)])
    assert metrics.ap == pytest.approx(51 / 101)  # recalls 0.00 to 0.50 of COCO's 101
    assert metrics.ar100 == pytest.approx(0.5)


def test_only_the_images_of_the_subset_count() -> None:
    boxes = squares((0, 0))
    assert evaluate(split_of(boxes, boxes).subset([1]), [found(1, boxes)]).ap == pytest.approx(1)


def test_stronger_false_detection_halves_the_precision() -> None:
    boxes = squares((0, 0))
    wrong = found(0, squares((300, 300)), score=0.95)
    metrics = evaluate(split_of(boxes), [found(0, boxes), wrong])
    assert metrics.ap == pytest.approx(0.5)


def test_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    boxes = ImageBoxes(
        np.array([[0, 0, SIDE, SIDE], [300, 300, 500, 400]]),
        np.zeros(2, dtype=np.int64),
        np.array([False, True]),
        np.array([SIDE**2, 9000]),
    )
    right = found(0, squares((0, 0)), score=0.5)
    in_crowd = found(0, squares((300, 300), (310, 320), (360, 350)))
    assert evaluate(split_of(boxes), [right]).ap == pytest.approx(1)
    assert evaluate(split_of(boxes), [right, in_crowd]).ap == pytest.approx(1)


def test_hundred_detections_per_image_count() -> None:
    boxes = squares((0, 0))
    wrong = squares(*((300.0, 2.0 * k) for k in range(100)))
    assert evaluate(split_of(boxes), [found(0, boxes, 0.1), found(0, wrong)]).ap == 0


def test_as_many_detections_count_as_the_detector_was_asked_for() -> None:
    boxes = squares(*((50.0 * (k % 10), 3.0 * (k // 10)) for k in range(225)))
    split, detections = split_of(boxes), [found(0, boxes)]
    few, many = (evaluate(split, detections, limit) for limit in (100, 300))
    assert (few.ap50, many.ap50) == (pytest.approx(45 / 101), pytest.approx(1))
    assert (few.max_detections, many.max_detections) == (100, 300)
    assert few.ar100 == many.ar100 == pytest.approx(100 / 225)
    assert evaluate(split, detections, 30).ar100 == pytest.approx(30 / 225)


def test_metrics_are_those_of_pycocotools_summary() -> None:
    chance = np.random.default_rng(0)
    boxes = [squares(*chance.uniform(0, 400, (9, 2))) for _ in range(4)]
    detections = [
        Detections(k, b.xyxy + chance.normal(0, 3, (9, 4)), chance.random(9), b.labels)
        for k, b in enumerate(boxes)
    ]
    split = split_of(*boxes)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": k} for k in range(4)],
            "categories": [{"id": 5}, {"id": 9}],
            "annotations": [
                {"id": 9 * k + n + 1, "image_id": k, "category_id": 5, "iscrowd": 0}
                | {"bbox": [x, y, SIDE, SIDE], "area": SIDE**2}
                for k, of_image in enumerate(boxes)
                for n, (x, y, _, _) in enumerate(of_image.xyxy.tolist())
            ],
            "info": {},
        }
        truth.createIndex()
        expected = COCOeval(truth, truth.loadRes(coco_results(detections, split)), "bbox")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    metrics = evaluate(split, detections)
    assert 0 < metrics.ap < 1
    found_stats = (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_medium, metrics.ar100)
    assert found_stats == pytest.approx(tuple(expected.stats[[0, 1, 2, 4, 8]]))


def test_ids_of_any_kind_are_evaluated_and_written_as_in_the_file() -> None:
    images = tuple(CocoImage(k, Path("x"), 640, 480, f"frame {k}") for k in (1, 2))
    boxes = squares((0, 0))
    split = replace(split_of(boxes, boxes), images=images, category_ids=("b", None))
    assert evaluate(split, [found(1, boxes), found(2, boxes)]).ap == pytest.approx(1)
    unlisted = replace(found(2, boxes), labels=np.array([1]))
    (result,) = coco_results([found(1, boxes), unlisted], split)
    assert (result["image_id"], result["category_id"]) == ("frame 1", "b")


def test_results_name_the_categories_of_the_file() -> None:
    tensors = Detections(
        0, torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([0.5]), torch.tensor([1])
    )
    assert coco_results([tensors], split_of(squares((0, 0)))) == [
        {"image_id": 0, "category_id": 9, "bbox": [1, 2, 3, 6], "score": 0.5}
    ]


def test_results_leave_the_detections_as_they_were() -> None:
    boxes = squares((10, 10))
    before = boxes.xyxy.copy()
    coco_results([found(0, boxes)], split_of(boxes))
    assert (boxes.xyxy == before).all()


def one(image_id: int = 0, label: int = 0, score: float = 0.5) -> Detections:
    return Detections(image_id, np.ones((1, 4)), np.array([score]), np.array([label]))


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (one(image_id=4), "name image 4, which x.json does not hold"),
        (one(label=2), "image 0 has label 2, x.json has labels 0 to 1"),
        (one(label=-1), "has label -1"),
        (one(score=float("nan")), "image 0 of x.json are not finite"),
    ],
)
def test_detections_of_another_set_are_refused(detections: Detections, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        evaluate(split_of(squares((0, 0))), [detections])


def test_split_of_crowds_only_has_nothing_to_evaluate() -> None:
    with pytest.raises(AdaptError, match=r"x\.json has no boxes of single objects"):
        evaluate(split_of(squares((0, 0), crowd=True)), [])


def test_evaluation_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    boxes = squares((0, 0))
    evaluate(split_of(boxes), [found(0, boxes)])
    assert capsys.readouterr().out == ""


def test_boxes_are_divided_by_the_factors_and_clipped() -> None:
    boxes = torch.tensor([[5.0, 10.0, 20.0, 30.0], [-2.0, 0.0, 500.0, 40.0]])
    original, _ = detections_to_original(boxes, (0.5, 2.0), width=100, height=15)
    assert original.tolist() == [[10, 5, 40, 15], [0, 0, 100, 15]]


def test_boxes_in_the_padding_alone_are_marked() -> None:
    """An image of 100x20 pixels fills the left half of its input."""
    right = [60.0, 0.0, 90.0, 20.0]
    boxes = torch.tensor([[40.0, 5.0, 70.0, 15.0], right, [50.0, 0.0, 99.0, 20.0]])
    original, inside = detections_to_original(boxes, (0.5, 1.0), width=100, height=20)
    assert inside.tolist() == [True, False, False]
    assert original[inside].tolist() == [[80, 5, 100, 15]]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split"), [("bccd", "val"), ("tiny_coco", "val"), ("tiny_coco", "train")]
)
def test_ground_truth_of_real_data_reaches_one(shared_data: Path, name: str, split: str) -> None:
    data = load_split(shared_data / name, split)
    perfect = [
        Detections(image.id, b.xyxy[~b.crowd], np.ones(int((~b.crowd).sum())), b.labels[~b.crowd])
        for image, b in zip(data.images, data.boxes, strict=True)
    ]
    metrics = evaluate(data, perfect)
    assert metrics.ap == pytest.approx(1)
    assert min(ap for ap in metrics.per_class.values() if ap is not None) == pytest.approx(1)
