import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adapt.artifacts import file_hash
from adapt.data.check import check_split
from adapt.data.coco import CocoSplit, load_split
from adapt.data.synthetic import CLASSES, EMPTY, draw_image, generate
from adapt.errors import AdaptError

HEIGHT, WIDTH = 128, 160


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "synthetic"
    return generate(folder, seed=1, train=60, val=20, size=(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def train(root: Path) -> CocoSplit:
    return load_split(root, "train")


def contents(root: Path) -> dict[str, str]:
    files = (file for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(root)): file_hash(file) for file in files}


def test_same_parameters_give_the_same_bytes_in_another_process(root: Path, tmp_path: Path) -> None:
    call = f"generate(Path({str(tmp_path / 'again')!r}), seed=1, train=60, val=20, size=(128, 160))"
    code = f"from pathlib import Path; from adapt.data.synthetic import generate; {call}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert contents(tmp_path / "again") == contents(root)


def test_other_seed_and_other_split_give_other_images(root: Path, tmp_path: Path) -> None:
    other = generate(tmp_path / "other", seed=2, train=2, val=2, size=(HEIGHT, WIDTH))
    images = ("images/train_00000.jpg", "images/val_00000.jpg")
    hashes = {file_hash(folder / image) for folder in (root, other) for image in images}
    assert len(hashes) == 4


def test_set_is_sound_and_has_every_class(train: CocoSplit, root: Path) -> None:
    report = check_split(train)
    assert (report.images, len(load_split(root, "val"))) == (60, 20)
    assert report.problems + report.warnings == ()
    assert set(report.boxes_per_class) == set(CLASSES)


def test_boxes_overlap_little(train: CocoSplit) -> None:
    for boxes in train.boxes:
        upper = np.maximum(boxes.xyxy[:, None, :2], boxes.xyxy[None, :, :2])
        lower = np.minimum(boxes.xyxy[:, None, 2:], boxes.xyxy[None, :, 2:])
        inner = (lower - upper).clip(0).prod(axis=2)
        own = (boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1)
        iou = inner / (own[:, None] + own[None, :] - inner)
        assert (iou - np.eye(len(boxes)) <= 0.31).all()


def test_sizes_range_from_small_to_large_and_images_from_empty_to_crowded(
    train: CocoSplit,
) -> None:
    sides = np.concatenate([b.xyxy[:, 2:] - b.xyxy[:, :2] for b in train.boxes]).max(axis=1)
    numbers = [len(boxes) for boxes in train.boxes]
    assert sides.min() < 20
    assert sides.max() > 80
    assert min(numbers) == 0
    assert max(numbers) >= 10
    assert numbers.count(0) < 4 * EMPTY * len(train)


def test_area_agrees_with_the_shape(train: CocoSplit) -> None:
    labels, areas, sizes = (
        np.concatenate([part(boxes) for boxes in train.boxes])
        for part in (
            lambda b: b.labels,
            lambda b: b.areas,
            lambda b: (b.xyxy[:, 2:] - b.xyxy[:, :2]).prod(axis=1),
        )
    )
    filled = (areas / sizes)[labels == CLASSES.index("disc")]
    assert filled.mean() == pytest.approx(np.pi / 4, rel=0.03)


def test_boxes_are_tight_around_what_changed_the_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.data.synthetic._texture", lambda h, w, _: np.full((h, w, 3), 255.0))
    shape = None
    for seed in range(40):
        pixels, objects = draw_image(HEIGHT, WIDTH, np.random.default_rng(seed))
        if len(objects) == 1:
            shape = objects[0]
            break
    assert shape is not None
    rows, columns = np.nonzero((pixels < 250).any(axis=2))
    drawn = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert shape[1] == pytest.approx(drawn, abs=1)


def test_complete_set_is_reused(root: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*")}
    generate(root, seed=1, train=60, val=20, size=(HEIGHT, WIDTH))
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*")} == before


def test_empty_folder_is_filled_and_nothing_else_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    generate(tmp_path / "set", train=1, val=1, size=(HEIGHT, WIDTH))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["parameters"]["train"] == 1


def test_folder_with_other_content_is_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder in (tmp_path, root):
        before = contents(folder)
        with pytest.raises(AdaptError, match=r"does not hold the synthetic set .*remove it"):
            generate(folder, seed=9, train=1, val=1)
        assert contents(folder) == before


def test_incomplete_set_is_not_taken_for_a_complete_one(tmp_path: Path) -> None:
    generate(tmp_path / "set", train=2, val=1, size=(HEIGHT, WIDTH))
    (tmp_path / "set" / "images" / "train_00000.jpg").unlink()
    with pytest.raises(AdaptError, match="does not hold"):
        generate(tmp_path / "set", train=2, val=1, size=(HEIGHT, WIDTH))


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": (64, 320)}])
def test_parameters_that_are_too_small_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(AdaptError, match="ask for more"):
        generate(tmp_path / "set", **wrong)  # type: ignore[arg-type]
