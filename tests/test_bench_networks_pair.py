"""A detector is called better only if images and rounds agree."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_parts import INFO, exported
from typer.testing import CliRunner

from adapt.data.bootstrap import bootstrapped, resampled_ap
from adapt.data.coco import CocoSplit
from adapt.data.evaluate import Detections, coco_evaluation, evaluate
from adapt.data.synthetic import generate
from adapt.errors import AdaptError
from bench.networks.pair import PairResult, detector_of
from cli import app

PAIR = PairResult(("a", "b"), 9, (50.0, 52.0), 2.0, (0.5, 3.5), (10.0, 9.0), 0.9, (0.88, 0.93))


def found_of(split: CocoSplit, seed: int, shift: float) -> list[Detections]:
    """The boxes of a split, moved at random by a share of their size, and some of them missed."""
    chance = np.random.default_rng(seed)
    detections = []
    for image, boxes in zip(split.images, split.boxes, strict=True):
        kept = chance.random(len(boxes)) < 0.8
        sides = boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]
        moved = boxes.xyxy + shift * np.tile(sides, 2) * chance.normal(size=boxes.xyxy.shape)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        scores = chance.random(len(boxes))
        found = moved[kept], scores[kept], boxes.labels[kept]
        detections.append(Detections(image.id, *map(torch.from_numpy, found)))
    return detections


def test_all_images_give_the_ap_itself(tiny_data: CocoSplit) -> None:
    found = found_of(tiny_data, 0, 0.05)
    evaluation = coco_evaluation(tiny_data, found)
    once = np.arange(len(tiny_data))
    assert resampled_ap(evaluation, once) == pytest.approx(evaluate(tiny_data, found).ap)
    assert resampled_ap(evaluation, once[::-1].copy()) == pytest.approx(
        evaluate(tiny_data, found).ap
    )


def test_images_that_are_drawn_give_the_ap_on_them(tiny_data: CocoSplit) -> None:
    evaluation = coco_evaluation(tiny_data, found_of(tiny_data, 1, 0.05))
    places = np.array([0, 3, 5])
    few = tiny_data.subset([tiny_data.images[place].id for place in places])
    found = [one for one in found_of(tiny_data, 1, 0.05) if one.image_id in few.image_ids]
    assert resampled_ap(evaluation, places) == pytest.approx(evaluate(few, found).ap)


def test_samples_are_paired_and_repeat(tiny_data: CocoSplit) -> None:
    good, bad = (coco_evaluation(tiny_data, found_of(tiny_data, 2, s)) for s in (0.02, 0.12))
    aps = bootstrapped([good, bad, good], 40)
    assert aps.shape == (40, 3)
    assert (aps[:, 0] == aps[:, 2]).all()
    assert np.std(aps[:, 0]) > 0
    assert (aps[:, 0] > aps[:, 1]).mean() > 0.9
    assert (aps == bootstrapped([good, bad, good], 40)).all()


@pytest.mark.parametrize(
    ("changes", "worse", "sentence"),
    [
        ({}, False, "b finds more than a (+2.00 AP [+0.50, +3.50] on 9 images), and is faster"),
        ({"difference_interval": (-1.0, 3.0)}, False, "b is not shown to differ in AP from a"),
        ({"difference_interval": (-3.0, -1.0)}, True, "b finds less than a"),
        ({"ratio_range": (0.97, 1.02)}, False, "and is not shown to differ in latency"),
        ({"ratio_range": (1.01, 1.04)}, True, "and is slower"),
    ],
)
def test_the_verdict_needs_the_whole_interval(
    changes: dict[str, tuple[float, float]], worse: bool, sentence: str
) -> None:
    result = replace(PAIR, **changes)
    assert result.worse == worse
    assert sentence in result.verdict


def test_a_folder_stands_for_the_detector_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="holds none instead of one derived detector"):
        detector_of(tmp_path)
    for name in ("derived.onnx", "derived.portrait.onnx", "source.onnx"):
        (tmp_path / name).touch()
    assert detector_of(tmp_path) == tmp_path / "derived.onnx"
    (tmp_path / "derived-75.onnx").touch()
    with pytest.raises(AdaptError, match=r"holds derived-75\.onnx, derived\.onnx instead of one"):
        detector_of(tmp_path)
    assert detector_of(tmp_path / "x.onnx") == tmp_path / "x.onnx"


def test_a_detector_is_not_worse_than_itself(exports: Path, tmp_path: Path) -> None:
    root = generate(tmp_path / "set", train=1, val=4)
    file = root / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for category, name in zip(content["categories"], INFO.classes, strict=True):
        category["name"] = name
    file.write_text(json.dumps(content))
    detector = str(exported(exports))
    options = ["--data", str(root), "--split", "val", "--samples", "20", "--rounds", "2", "--json"]
    result = CliRunner().invoke(app, ["compare", detector, detector, *options])
    found = json.loads(result.stdout)
    assert found["difference"] == 0
    assert found["difference_interval"] == [0, 0]
    assert "is not shown to differ in AP" in found["verdict"]
    assert 0.3 < found["ratio"] < 3
    assert result.exit_code == int(found["worse"])
