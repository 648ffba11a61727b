"""A recipe is written that fits the images, says why, and runs; held-out images are not alike."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.data.pooled import pooled
from adapt.detector.config import DetectorConfig, RetinaNetConfig
from adapt.detector.objects import ANCHOR_SIZES, Objects, anchor_recall, best_anchor
from adapt.detector.retinanet import anchor_generator
from adapt.errors import AdaptError
from adapt.runtime import Runtime
from cli import app
from search.advice.advise import advise, input_size, letterboxes, training_epochs
from search.advice.held_out import alike, hold_out
from search.advice.run import NO_TEST, advised_recipe
from search.recipe.recipe import Recipe


def objects(sides: list[float], labels: list[int] | None = None, image: float = 640) -> Objects:
    """Square objects, each in an image of its own of 3:4."""
    boxes = np.array([[side, side] for side in sides])
    number = len(sides)
    of_class = np.array(labels or [0] * number)
    return Objects(np.array([[image * 3 / 4, image]] * number), boxes, np.arange(number), of_class)


def test_boxes_of_the_size_of_anchors_are_all_matched_and_far_smaller_ones_are_not() -> None:
    config = DetectorConfig(1, **RetinaNetConfig(anchor_size=16).to_dict())
    cells = np.concatenate([cell.numpy() for cell in anchor_generator(config).cell_anchors])
    anchors = (cells[:, 2:] - cells[:, :2])[:, ::-1]
    assert anchor_recall(anchors, 16) == 1
    assert anchor_recall(anchors / 3, 16) < 1
    assert anchor_recall(np.full((4, 2), 5.0), 16) == 0


@pytest.mark.parametrize("side", [7.0, 15.0, 33.0])
def test_the_best_anchor_matches_as_many_boxes_as_any(side: float) -> None:
    boxes = np.full((10, 2), side)
    size, recall = best_anchor(boxes)
    assert recall == max(anchor_recall(boxes, other) for other in ANCHOR_SIZES) == 1
    assert anchor_recall(boxes, size) == recall


def test_boxes_are_measured_as_they_are_fitted(tiny_data: CocoSplit) -> None:
    whole = Objects.of(tiny_data)
    assert len(whole.boxes) == sum((~boxes.crowd).sum() for boxes in tiny_data.boxes)
    first = tiny_data.boxes[0].xyxy[0]
    height, width = first[3] - first[1], first[2] - first[0]
    assert whole.fitted(InputSize(64, 64))[0] == pytest.approx([height / 2, width / 2])  # of 128
    assert whole.sides(InputSize(128, 128))[0] == pytest.approx(np.sqrt(height * width))


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (1080, 1920), (500, 500), (100, 900)])
def test_letterboxes_have_the_shape_of_the_images(shape: tuple[int, int]) -> None:
    for size in letterboxes(*shape):
        assert size.height % 32 == size.width % 32 == 0
        assert (size.height >= size.width) == (shape[0] >= shape[1])
    ratios = [size.height / size.width for size in letterboxes(*shape)[-8:]]
    assert ratios == pytest.approx([shape[0] / shape[1]] * 8, rel=0.25)


def test_smaller_objects_get_larger_inputs_but_not_larger_than_a_processor_can() -> None:
    pixels = []
    for side in (200.0, 60.0, 40.0, 30.0, 4.0):
        size, why = input_size(objects([side] * 20), "cpu")
        pixels.append(size.height * size.width)
        assert ("the largest that" in why) == (side == 4.0)
        if side < 60:
            assert size.scale(480, 640) * side >= 16 or side == 4.0
    assert pixels == sorted(pixels)
    assert pixels[0] < pixels[-1] <= 320 * 416
    assert input_size(objects([4.0] * 20), "gpu")[0].height > 320


def test_a_rare_class_of_small_objects_counts_as_much_as_a_frequent_one() -> None:
    both = objects([200.0] * 90 + [32.0] * 10, [0] * 90 + [1] * 10)
    alone = objects([32.0] * 10)
    assert input_size(both, "cpu")[0] == input_size(alone, "cpu")[0]


@pytest.mark.parametrize(("images", "epochs"), [(10, 60), (205, 29), (100_000, 12)])
def test_few_images_are_seen_more_often(images: int, epochs: int) -> None:
    assert training_epochs(images, 4) == epochs


def test_advice_for_a_gpu_is_larger() -> None:
    on_cpu, on_gpu = (advise(objects([30.0] * 40), on) for on in ("cpu", "gpu"))
    for name in ("detector.fpn_width", "finetune.batch_size"):
        assert int(str(on_gpu[name].value)) > int(str(on_cpu[name].value))


@pytest.mark.parametrize(("per_image", "proposals"), [(1, 100), (30, 150), (500, 300)])
def test_a_second_stage_is_for_cpus_and_looks_at_several_boxes_per_object(
    per_image: int, proposals: int
) -> None:
    few = objects([30.0] * 40)
    crowded = replace(
        few,
        boxes=few.boxes.repeat(per_image, 0),
        of_image=few.of_image.repeat(per_image),
        labels=few.labels.repeat(per_image),
    )
    advice = advise(crowded, "cpu")
    assert advice["detector.head"].value == "faster-rcnn"
    assert advice["detector.proposals"].value == proposals
    assert not {"detector.head", "detector.proposals"} & advise(crowded, "gpu").keys()


def copied(split: CocoSplit, folder: Path, repeated: int = 1) -> Path:
    """A data set with a split `train` only, every image so many times."""
    content = json.loads(split.annotations.read_text())
    images, annotations = [], []
    for image in content["images"]:
        for copy in range(repeated):
            number = len(images) + 1
            name = f"{copy}-{image['file_name']}"
            (folder / "images").mkdir(parents=True, exist_ok=True)
            Image.open(split.folder / image["file_name"]).save(folder / "images" / name)
            images.append({**image, "id": number, "file_name": name})
            annotations += [
                {**one, "id": len(annotations) + place, "image_id": number}
                for place, one in enumerate(
                    a for a in content["annotations"] if a["image_id"] == image["id"]
                )
            ]
    (folder / "annotations").mkdir()
    file = folder / "annotations" / "train.json"
    file.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    return folder


def test_copies_of_an_image_are_held_out_together(tiny_data: CocoSplit, tmp_path: Path) -> None:
    split = load_split(copied(tiny_data, tmp_path / "data", repeated=3), "train")
    groups = alike(pooled([split]))
    assert len(set(groups.tolist())) == len(tiny_data)
    counts = hold_out(split, tmp_path / "held")
    train, val = (load_split(tmp_path / "held", name) for name in ("train", "val"))
    assert counts == {"groups": 8, "train": len(train), "val": len(val)}
    assert len(train) + len(val) == len(split)
    assert 0 < len(val) <= 0.2 * len(split)

    def originals(part: CocoSplit) -> set[str]:
        return {image.path.name.partition("-")[2] for image in part.images}

    assert not originals(train) & originals(val)
    assert sum(len(b) for b in (*train.boxes, *val.boxes)) == sum(len(b) for b in split.boxes)
    assert hold_out(split, tmp_path / "held") == counts
    with pytest.raises(
        AdaptError, match="held holds something else, or a division of other images"
    ):
        hold_out(split, tmp_path / "held", seed=1)


def test_images_that_are_all_alike_cannot_be_held_out(tiny_data: CocoSplit, tmp_path: Path) -> None:
    one = tiny_data.subset([tiny_data.images[0].id])
    content = json.loads(tiny_data.annotations.read_text())
    content["images"] = [i for i in content["images"] if i["id"] == one.images[0].id]
    content["annotations"] = [
        a for a in content["annotations"] if a["image_id"] == one.images[0].id
    ]
    file = tmp_path / "one.json"
    file.write_text(json.dumps(content))
    split = replace(one, place=replace(one.place, annotations=file))
    with pytest.raises(AdaptError, match="has 1 images, too few to hold some out"):
        hold_out(split, tmp_path / "held")
    data = copied(split, tmp_path / "data", repeated=6)
    with pytest.raises(
        AdaptError, match=r"the 6 images of .* look alike, or too few of them have boxes"
    ):
        hold_out(load_split(data, "train"), tmp_path / "held")
    assert not (tmp_path / "held").exists()


def test_an_advised_recipe_is_read_as_it_was_meant(tiny_data: CocoSplit, tmp_path: Path) -> None:
    root = tiny_data.annotations.parents[1]
    advised = advised_recipe(root, tmp_path / "mine.toml", "ort-cpu", "9.5ms")
    advised.save(12.3)
    recipe = Recipe.load(str(tmp_path / "mine.toml"))
    assert recipe == advised.recipe
    assert recipe.name == "mine"
    assert recipe.search.target == "9.5ms"
    assert (recipe.data.augment.crop, recipe.data.augment.mosaic) == (0.5, 0.0)
    assert recipe.search.choice == "joint"
    assert recipe.setting.input in [setting.input for setting in recipe.settings]
    assert len(recipe.split(recipe.data.train)) == len(tiny_data)
    text = (tmp_path / "mine.toml").read_text()
    assert "about 12 minutes" in text
    assert "--budgets" not in text
    assert all(len(line) <= 110 for line in text.splitlines() if line.startswith("#"))


@pytest.mark.parametrize(
    ("runtime", "preset", "pyramids"),
    [("ort-cpu", "mobilenet_v2_slim", {48}), ("tensorrt", "mobilenet_v2", {128})],
)
def test_networks_are_chosen_from_the_space_that_was_studied_on_such_a_device(
    runtime: Runtime, preset: str, pyramids: set[int], tiny_data: CocoSplit, tmp_path: Path
) -> None:
    root = tiny_data.annotations.parents[1]
    recipe = advised_recipe(root, tmp_path / "mine.toml", runtime).recipe
    assert recipe.space.preset == preset
    chosen_from = [one for one in recipe.settings if one != recipe.setting]
    assert {one.detector.fpn_width for one in chosen_from} == pyramids


def test_a_data_set_without_val_is_divided_beside_the_recipe(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    data = copied(tiny_data, tmp_path / "data")
    advised = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu")
    assert advised.found["held_out_in"] == str(tmp_path / "mine-data")
    recipe = advised.recipe
    assert len(recipe.split("train")) + len(recipe.split("val")) == len(tiny_data)


def test_crowds_and_rare_classes_are_learned_with_care(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    usual = advised_recipe(copied(tiny_data, tmp_path / "a"), tmp_path / "a.toml", "ort-cpu")
    assert not {"data.rare", "data.ignore_crowds"} & set(usual.settings)
    data = copied(tiny_data, tmp_path / "data", repeated=30)
    file = data / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 99, "name": "rare"})
    content["annotations"][0]["category_id"] = 99
    content["annotations"][-1]["iscrowd"] = 1
    content["annotations"][-2]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    for name in ("val", "train"):  # a division would hold some of them out
        (data / "annotations" / f"{name}.json").write_text(json.dumps(content))
    recipe = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu").recipe
    assert recipe.data.ignore_crowds
    assert recipe.data.rare == 0.01


def test_the_only_split_is_trained_on_whatever_its_name_is(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    from format_parts import as_yolo

    data = copied(tiny_data, tmp_path / "data")
    (data / "annotations" / "train.json").rename(data / "annotations" / "instances_default.json")
    advised = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu")
    same = as_yolo(data, tmp_path / "yolo", ["default"])
    (same / "data.yaml").write_text((same / "data.yaml").read_text().replace("default:", "train:"))
    again = advised_recipe(same / "data.yaml", tmp_path / "other.toml", "ort-cpu")
    for recipe in (advised.recipe, again.recipe):
        assert len(recipe.split("train")) + len(recipe.split("val")) == len(tiny_data)
    assert advised.settings["detector.anchor_size"] == again.settings["detector.anchor_size"]


def test_a_val_that_is_named_but_not_there_is_told(tiny_data: CocoSplit, tmp_path: Path) -> None:
    from format_parts import as_yolo

    data = copied(tiny_data, tmp_path / "data")
    yolo = as_yolo(data, tmp_path / "yolo", ["train"])
    assert advised_recipe(yolo, tmp_path / "a.toml", "ort-cpu").doubts == (NO_TEST,)
    (yolo / "data.yaml").write_text((yolo / "data.yaml").read_text() + "val: images/vla\n")
    doubt, _ = advised_recipe(yolo, tmp_path / "b.toml", "ort-cpu").doubts
    assert "data.yaml says val: images/vla, which does not exist; training images are" in doubt


def test_test_images_stay_a_split_where_others_are_held_out(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    data, other = copied(tiny_data, tmp_path / "data"), copied(tiny_data, tmp_path / "other")
    (data / "annotations" / "test.json").write_text(
        (other / "annotations" / "train.json").read_text().replace("0-", "t-")
    )
    for image in (other / "images").iterdir():
        image.rename(data / "images" / f"t-{image.name.removeprefix('0-')}")
    recipe = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu").recipe
    assert recipe.data.benchmark == "test"
    test = recipe.split("test")
    assert sum(map(len, test.boxes)) == sum(map(len, tiny_data.boxes))
    assert all(image.path.name.startswith("t-") for image in test.images)
    held = [*recipe.split("train").images, *recipe.split("val").images]
    assert sorted(i.path.name for i in held) == sorted(
        f"0-{image.path.name}" for image in tiny_data.images
    )


def test_boxes_that_must_be_repaired_in_any_split_turn_repair_on(
    tiny_data: CocoSplit, tmp_path: Path
) -> None:
    data = copied(tiny_data, tmp_path / "data")
    train = data / "annotations" / "train.json"
    content = json.loads(train.read_text())
    (data / "annotations" / "val.json").write_text(train.read_text())
    content["annotations"][0]["bbox"][2] = 0
    (data / "annotations" / "test.json").write_text(json.dumps(content))
    advised = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu")
    assert advised.recipe.data.repair
    assert any("test.json" in doubt and "1 left out" in doubt for doubt in advised.doubts)


def test_images_named_by_whole_paths_can_be_held_out(
    tiny_data: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPT_IMAGE_FOLDERS", str(tmp_path / "elsewhere"))
    data = copied(tiny_data, tmp_path / "data")
    train = data / "annotations" / "train.json"
    content = json.loads(train.read_text())
    for image in content["images"]:
        elsewhere = tmp_path / "elsewhere" / image["file_name"]
        elsewhere.parent.mkdir(exist_ok=True)
        (data / "images" / image["file_name"]).rename(elsewhere)
        image["file_name"] = str(elsewhere)
    train.write_text(json.dumps(content))
    recipe = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu").recipe
    assert all(i.path.is_file() for name in ("train", "val") for i in recipe.split(name).images)


@pytest.mark.parametrize("with_boxes", [1, 2])
def test_both_parts_of_a_division_have_boxes_if_that_can_be(
    with_boxes: int, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    data = copied(tiny_data, tmp_path / "data")
    train = data / "annotations" / "train.json"
    content = json.loads(train.read_text())
    kept = {image["id"] for image in content["images"][:with_boxes]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    train.write_text(json.dumps(content))
    if with_boxes == 1:
        with pytest.raises(AdaptError, match="too few of them have boxes"):
            advised_recipe(data, tmp_path / "mine.toml", "ort-cpu")
        return
    recipe = advised_recipe(data, tmp_path / "mine.toml", "ort-cpu").recipe
    assert recipe.split("train").has_boxes
    assert recipe.split("val").has_boxes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "data set nowhere does not exist"),
        (["."], "has no split `train` (it has none)"),
        (["DATA", "--runtime", "tpu"], "--runtime must be one of"),
        (["DATA", "--target", "fast"], "fast"),
        (["DATA", "--out", "mine"], "a recipe is a .toml file, got --out mine"),
        (["DATA", "--target", "3G"], "target '3G' does not fit cost 'latency'"),
        (["DATA", "--out", "there.toml"], "there.toml exists and is left alone"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tiny_data: CocoSplit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.toml").write_text("mine")
    root = str(tiny_data.annotations.parents[1])
    given = [root if word == "DATA" else word for word in arguments]
    result = CliRunner().invoke(app, ["init", *given, "--no-time"])
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
    assert Path("there.toml").read_text() == "mine"


def test_init_says_what_it_chose(
    tiny_data: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = str(tiny_data.annotations.parents[1])
    result = CliRunner().invoke(app, ["init", root, "--out", "a.toml", "--no-time", "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    recipe = Recipe.load("a.toml")
    assert shown["settings"]["detector.anchor_size"] == recipe.detector.anchor_size
    assert shown["next"] == "adapt run a.toml --budgets 75%"
    assert "# It sets no latency" in Path("a.toml").read_text()
    assert ("there is no `test` split" in result.stderr) == ("data.test" not in shown["settings"])


@pytest.mark.parametrize("load", [0.1, 3.0])
def test_minutes_that_a_busy_machine_takes_are_not_written(
    load: float, tiny_data: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.machine.load_per_core", lambda: load)
    monkeypatch.setattr("bench.commands.init._minutes", lambda _: 12.5)
    out = tmp_path / "a.toml"
    root = str(tiny_data.annotations.parents[1])
    result = CliRunner().invoke(app, ["init", root, "--out", str(out), "--json"])
    assert json.loads(result.stdout)["minutes"] == 12.5
    assert ("busy" in result.stderr) == (load > 1)
    assert ("about 12 minutes" in out.read_text()) == (load < 1)


def test_people_read_how_long_a_run_takes_in_its_usual_unit(
    tiny_data: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.commands.init._minutes", lambda _: 607.1)
    arguments = [str(tiny_data.annotations.parents[1]), "--out", str(tmp_path / "a.toml")]
    shown = CliRunner().invoke(app, ["init", *arguments]).stdout
    assert "run takes" in shown
    assert "about 10.1 h on this machine" in shown
