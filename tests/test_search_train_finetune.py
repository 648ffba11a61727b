import importlib.util
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import StoppedError, assert_same_state, random_architecture, stop_after
from format_parts import as_voc, as_yolo
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adapt.data.coco import CocoSplit, load_split
from adapt.data.images import InputSize
from adapt.detector.file import DetectorInfo, load_detector, read_detector_info
from adapt.errors import AdaptError
from adapt.network.weights import PUBLISHED
from adapt.sources import mobilenet_v2
from search.recipe.joint import Setting
from search.recipe.recipe import Recipe
from search.recipe.schedule import Schedule
from search.train.finetune import initial_detector, resolve_architecture, run_finetune
from search.train.log import read_log
from search.train.session import Session


def run(recipe: Recipe, data: CocoSplit, path: Path, **options: Any) -> Path:
    architecture = random_architecture(recipe.space.load(), seed=1)
    return run_finetune(recipe, architecture, data, path, Session(**options))


def test_steps_are_epochs_of_full_batches_or_the_limit() -> None:
    paper = Recipe().finetune
    steps = Schedule.of_finetuning
    assert steps(paper, 118_287).total_steps == 24 * (118_287 // 32)
    assert steps(paper, 118_287, limit_steps=7).total_steps == 7
    assert steps(paper, 3).total_steps == 24  # fewer images than a batch make one batch


@pytest.mark.parametrize("written", [as_voc, as_yolo])
def test_a_training_does_not_depend_on_the_format_of_the_annotations(
    written: Callable[..., Path], tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    root = written(tiny_data.annotations.parents[1], tmp_path / "other", ["train"])
    other = load_split(root, "train")
    assert other.class_names == tiny_data.class_names
    augmented = tiny_recipe.changed({"data": {"augment": {"crop": 0.5, "mosaic": 0.5}}}, "test")
    states = [
        load_detector(run(augmented, data, tmp_path / f"{number}.safetensors"))[0].state_dict()
        for number, data in enumerate((tiny_data, other))
    ]
    assert_same_state(*states)


def test_file_holds_the_trained_detector_and_its_recipe(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    path = run(tiny_recipe, tiny_data, tmp_path / "new" / "d.safetensors", provenance={"of": "x"})
    info, header = read_detector_info(path)
    assert info.architecture == random_architecture(tiny_recipe.space.load(), seed=1)
    assert info.classes == tiny_data.class_names
    assert info.category_ids == tiny_data.category_ids
    assert info.input == tiny_recipe.input
    assert Recipe.from_dict(header["recipe"]) == tiny_recipe
    assert header["provenance"] == {"of": "x"}
    assert not list(path.parent.glob("*checkpoint*"))  # its work is done
    assert set(path.parent.glob("d.training.*")) == {
        path.with_suffix(".training.jsonl"),
        path.with_suffix(".training.png"),
    }
    with Image.open(path.with_suffix(".training.png")) as plot:
        assert plot.width > 500


def test_training_lowers_the_loss(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    losses: list[float] = []

    def note(done: int, total: int, note: str = "", /) -> None:
        losses.append(float(note.removeprefix("loss ")))

    longer = replace(tiny_recipe, finetune=replace(tiny_recipe.finetune, epochs=10))
    run(longer, tiny_data, tmp_path / "d.safetensors", progress=note)
    assert len(losses) == 20
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("parts", [1, 2])
def test_log_holds_the_means_of_every_epoch(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path, parts: int
) -> None:
    losses: list[float] = []

    def note(done: int, total: int, note: str = "", /) -> None:
        losses.append(float(note.removeprefix("loss ")))

    recipe = replace(tiny_recipe, finetune=replace(tiny_recipe.finetune, accumulate=parts))
    path = run(recipe, tiny_data, tmp_path / "d.safetensors", progress=note)
    entries = read_log(path.with_suffix(".training.jsonl"))
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert [entry["epoch"] for entry in entries] == [1, 2, 3]
    for number, entry in enumerate(entries):
        mean = sum(losses[2 * number : 2 * number + 2]) / 2
        assert entry["loss"] == pytest.approx(mean, abs=1e-3)
        by_part = entry["classification"] + entry["bbox_regression"]
        assert by_part == pytest.approx(entry["loss"], rel=1e-5)
    events = EventAccumulator(str(path.with_suffix(".tensorboard"))).Reload()
    drawn = [round(scalar.value, 4) for scalar in events.Scalars("loss")]
    assert drawn == [round(entry["loss"], 4) for entry in entries]


def test_training_changes_every_parameter(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    model, info = load_detector(run(tiny_recipe, tiny_data, tmp_path / "d.safetensors"))
    start, report = initial_detector(tiny_recipe, info, tiny_data)
    assert report is None
    still = [n for n, p in model.named_parameters() if torch.equal(p, start.get_parameter(n))]
    assert still == []


def test_same_seed_gives_the_same_detector(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    first = run(tiny_recipe, tiny_data, tmp_path / "a.safetensors")
    torch.rand(7)  # whatever else happened in the process
    second = run(tiny_recipe, tiny_data, tmp_path / "b.safetensors")
    other = run(replace(tiny_recipe, seed=1), tiny_data, tmp_path / "c.safetensors")
    assert_same_state(load_file(first), load_file(second))
    weight = "head.classification_head.cls_logits.weight"
    assert not torch.equal(load_file(first)[weight], load_file(other)[weight])


USUAL = {(1, "sgd", "step"), (3, "adamw", "one-cycle"), (5, "sgd", "one-cycle")}


@pytest.mark.parametrize(
    ("stop", "optimizer", "schedule"),
    [
        pytest.param(*how, marks=[] if how in USUAL else [pytest.mark.slow])
        for how in product((1, 3, 5), ("sgd", "adamw"), ("step", "one-cycle"))
    ],
)
def test_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    tiny_recipe: Recipe,
    tiny_data: CocoSplit,
    tmp_path: Path,
    schedule: str,
    optimizer: str,
    stop: int,
) -> None:
    how: Any = {"schedule": schedule, "optimizer": optimizer}
    recipe = replace(tiny_recipe, finetune=replace(tiny_recipe.finetune, **how))
    whole = run(recipe, tiny_data, tmp_path / "whole.safetensors")
    with pytest.raises(StoppedError):
        run(recipe, tiny_data, tmp_path / "parts.safetensors", progress=stop_after(stop))
    taken: list[int] = []
    resumed = run(
        recipe,
        tiny_data,
        tmp_path / "parts.safetensors",
        progress=lambda done, total, note="", /: taken.append(done),
    )
    assert taken[0] == stop // 2 * 2 + 1  # an epoch has 2 steps
    assert_same_state(load_file(resumed), load_file(whole))
    one, two = (
        [entry | {"time": ""} for entry in read_log(path.with_suffix(".training.jsonl"))]
        for path in (resumed, whole)
    )
    assert one == two


def other_architecture(recipe: Recipe, data: CocoSplit, path: Path) -> None:
    run_finetune(recipe, random_architecture(recipe.space.load(), seed=2), data, path)


def other_recipe(recipe: Recipe, data: CocoSplit, path: Path) -> None:
    run(replace(recipe, finetune=replace(recipe.finetune, lr=0.02)), data, path)


@pytest.mark.parametrize("again", [other_architecture, other_recipe])
def test_checkpoint_of_another_run_is_refused(
    tiny_recipe: Recipe,
    tiny_data: CocoSplit,
    tmp_path: Path,
    again: Callable[[Recipe, CocoSplit, Path], None],
) -> None:
    path = tmp_path / "d.safetensors"
    with pytest.raises(StoppedError):
        run(tiny_recipe, tiny_data, path, progress=stop_after(3))
    with pytest.raises(AdaptError, match=r"d.checkpoint.pt belongs to another run"):
        again(tiny_recipe, tiny_data, path)


def test_diverging_training_stops_and_writes_no_detector(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe, finetune=replace(tiny_recipe.finetune, lr=1e30))
    with pytest.raises(AdaptError, match=r"the loss became (nan|inf) on images .* lower the learn"):
        run(recipe, tiny_data, tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_sources_own_architecture_has_a_name_and_others_a_file(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    assert resolve_architecture("mobilenet_v2", tiny_recipe) == (mobilenet_v2(), tiny_recipe)
    architecture = random_architecture(tiny_recipe.space.load(), seed=1)
    architecture.save(tmp_path / "a.json")
    assert resolve_architecture(str(tmp_path / "a.json"), tiny_recipe) == (
        architecture,
        tiny_recipe,
    )
    with pytest.raises(AdaptError, match="of another search space than 'mobilenet_v2'"):
        resolve_architecture(str(tmp_path / "a.json"), Recipe())


def test_a_network_is_trained_in_the_setting_that_it_was_chosen_with(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    architecture = random_architecture(tiny_recipe.space.load(), seed=1)
    setting = Setting(replace(tiny_recipe.detector, head_depth=3), InputSize(96, 32))
    architecture.save(tmp_path / "a.json", setting=setting.changes())
    _, recipe = resolve_architecture(str(tmp_path / "a.json"), tiny_recipe)
    assert recipe.setting == setting
    assert replace(recipe, detector=tiny_recipe.detector, input=tiny_recipe.input) == tiny_recipe
    architecture.save(tmp_path / "half.json", setting={"input": {"height": 64, "width": 64}})
    with pytest.raises(AdaptError, match=r"half\.json is not valid: detector is missing"):
        resolve_architecture(str(tmp_path / "half.json"), tiny_recipe)


def test_detector_starts_from_the_published_weights(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    wanted = PUBLISHED["mobilenet_v2"]
    if importlib.util.find_spec(wanted.module) is None:
        pytest.skip(f"{wanted.package} is not installed")
    recipe = replace(tiny_recipe, init="imagenet")
    config = recipe.detector_config(3)
    info = DetectorInfo(mobilenet_v2(), config, recipe.input, ("a", "b", "c"))
    _, report = initial_detector(recipe, info, tiny_data)
    assert report is not None
    assert report.share == 1.0
    assert report.lost_variance == pytest.approx({"C3": 0, "C4": 0, "C5": 0}, abs=1e-6)
