"""Validation while training: AP, best and averaged weights, patience, recalibrated BatchNorms."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import StoppedError, assert_same_state, random_architecture, stop_after
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset, epoch_batches
from adapt.detector.detect import batches_of
from adapt.detector.file import load_detector, read_detector_info
from adapt.detector.statistics import recalibrate
from adapt.errors import AdaptError
from bench.networks.evaluation import evaluate_artifact
from search.recipe.optimisation import FinetuneRecipe
from search.recipe.recipe import Recipe
from search.train.average import decay_after, weight_average
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.session import Session
from search.train.validation import Validation, validation_split
from search.train.world import World

EVERYTHING: dict[str, Any] = {
    **{"val_epochs": 1, "keep": "best", "ema": 0.999, "patience": 9, "recalibrate": 4}
}


@pytest.fixture
def recipe(tiny_recipe: Recipe, tiny_data: CocoSplit) -> Recipe:
    """The tiny recipe with a val split, for a detector that finds something after a few steps."""
    data = replace(tiny_recipe.data, root=str(tiny_data.annotations.parents[1]))
    detector = replace(tiny_recipe.detector, score_threshold=0.0)
    return replace(tiny_recipe, data=data, detector=detector)


def with_finetune(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, finetune=replace(recipe.finetune, **changes))


def run(recipe: Recipe, data: CocoSplit, path: Path, **options: Any) -> Path:
    architecture = random_architecture(recipe.space.load(), seed=1)
    return run_finetune(recipe, architecture, data, path, Session(**options))


def written(path: Path) -> dict[str, Any]:
    return read_detector_info(path)[1].get("written", {})


def val_aps(path: Path) -> list[float]:
    return [e["val_ap"] for e in read_log(path.with_suffix(".training.jsonl")) if "val_ap" in e]


def test_decay_of_the_average_rises_to_its_largest() -> None:
    assert decay_after(1, 0.9998) == 2 / 11
    assert decay_after(90, 0.9998) == 0.91
    assert decay_after(10**6, 0.9998) == 0.9998


def test_average_is_the_one_by_hand_of_weights_and_statistics() -> None:
    model = nn.BatchNorm1d(1).double()
    average, expected = weight_average(model, 0.5), 0.0
    for step, value in enumerate((3.0, -1.0, 7.0, 2.0)):
        nn.init.constant_(model.weight, value)
        assert model.running_mean is not None
        model.running_mean.fill_(value)
        average.update_parameters(model)
        stays = decay_after(step, 0.5) if step else 0.0
        expected = stays * expected + (1 - stays) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-12)
        assert average.module.running_mean.item() == pytest.approx(expected, rel=1e-12)
        assert model.weight.item() == value


@pytest.fixture
def validation(recipe: Recipe, tiny_data: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a validation that measures the APs it is given."""

    def make(aps: Iterator[float], **changes: Any) -> Validation:
        monkeypatch.setattr(Validation, "measured", lambda self, weights: next(aps))
        asked = with_finetune(recipe, val_epochs=1, **changes)
        split = validation_split(asked, tiny_data)
        assert split
        return Validation(asked, nn.Identity(), split, World(0, 1, torch.device("cpu")))

    return make


def test_best_weights_are_those_of_the_highest_ap_and_of_equal_ones_the_later(
    validation: Any,
) -> None:
    found = validation(iter((0.0, 1.0, 3.0, 2.0, 3.0, 1.0)), keep="best")
    for epoch in range(1, 7):
        found.validate(epoch, {"w": torch.tensor(float(epoch))})
    assert (found.best_ap, found.best_epoch, found.best_weights["w"].item()) == (3.0, 5, 5.0)


def test_patience_waits_only_once_there_is_an_ap(validation: Any) -> None:
    found = validation(iter((0.0, 0.0, 0.0, 2.0, 2.0, 1.0)), patience=2)
    over = []
    for epoch in range(1, 7):
        found.validate(epoch, {})
        over.append(found.is_over)
    assert over == [False] * 5 + [True]
    assert found.why_over(6.0) == (
        "the fine-tuning stops after epoch 6 of 3: AP on val was not above the 2.0 of epoch 5 in 2 "
        "evaluations"
    )
    assert found.best_weights == {}  # the last ones are written


def test_file_reaches_the_ap_that_it_names_and_log_and_plots_show_all(
    recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    notes: list[str] = []
    path = run(
        with_finetune(recipe, epochs=4, **EVERYTHING),
        tiny_data,
        tmp_path / "d.safetensors",
        progress=lambda done, total, note="", /: notes.append(note),
    )
    found, aps = written(path), val_aps(path)
    assert len(aps) == 4
    assert found["val_ap_before_recalibration"] == max(aps) > 0
    assert aps[round(found["epoch"]) - 1] == max(aps)
    assert (found["keep"], found["ema"], found["recalibrated"]) == ("best", 0.999, 4)
    evaluated = 100 * evaluate_artifact(path, recipe.split("val")).ap
    assert found["val_ap"] == pytest.approx(evaluated, abs=1e-3)
    assert notes[-1].endswith(f", val AP {aps[-2]:.1f}")
    events = EventAccumulator(str(path.with_suffix(".tensorboard"))).Reload()
    assert [e.value for e in events.Scalars("val_ap")] == pytest.approx(aps, rel=1e-5)
    with Image.open(path.with_suffix(".training.png")) as plot:
        assert plot.width > 900


def test_validation_changes_nothing_and_recalibration_statistics_alone(
    recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    plain = run(recipe, tiny_data, tmp_path / "plain.safetensors")
    asked = with_finetune(recipe, val_epochs=2, recalibrate=3)
    path = run(asked, tiny_data, tmp_path / "watched.safetensors")
    assert written(plain) == {}
    steps = [e["step"] for e in read_log(path.with_suffix(".training.jsonl")) if "val_ap" in e]
    assert steps == [4, 6]  # after two epochs, and at the end
    expected, _ = load_detector(plain)
    found, _ = load_detector(path)
    assert_same_state(dict(found.named_parameters()), dict(expected.named_parameters()))
    images = DetectionDataset(tiny_data, recipe.input)
    (first, _) = epoch_batches(8, 4, seed=recipe.seed, epoch=0, flip=False)
    positions = [draw.position for draw in first]  # 3 images are one batch of 4
    recalibrate(expected, batches_of(images, positions, 4), torch.device("cpu"))
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stop", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_resumed_training_keeps_average_best_weights_and_patience(
    recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path, stop: int
) -> None:
    recipe = with_finetune(recipe, epochs=4, **EVERYTHING)
    whole = run(recipe, tiny_data, tmp_path / "whole.safetensors")
    parts = tmp_path / "parts.safetensors"
    with pytest.raises(StoppedError):
        run(recipe, tiny_data, parts, progress=stop_after(stop))
    run(recipe, tiny_data, parts)
    assert_same_state(load_file(parts), load_file(whole))
    assert written(parts) == written(whole)
    assert val_aps(parts) == val_aps(whole)


def test_training_stops_early_and_says_why_and_that_it_only_warmed_up(
    recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    warnings: list[str] = []
    recipe = with_finetune(recipe, epochs=30, val_epochs=1, patience=1, warmup_steps=61)
    path = run(recipe, tiny_data, tmp_path / "d.safetensors", warn=warnings.append)
    aps = val_aps(path)
    assert 1 < len(aps) < 30
    assert written(path)["epoch"] == len(aps)
    warm_up, over = warnings
    assert warm_up == (
        "finetune.warmup_steps = 61 is more than the 60 steps of the training: the learning rate "
        "ends before it reaches lr = 0.01; lower warmup_steps or raise epochs"
    )
    assert over.startswith(f"the fine-tuning stops after epoch {len(aps)} of 30: AP on val was not")


def test_training_cut_short_on_purpose_is_not_told_that_it_only_warms_up() -> None:
    how = FinetuneRecipe(epochs=30, batch_size=4, warmup_steps=61)
    assert how.warm_up_doubt("finetune", 8, None).startswith("finetune.warmup_steps = 61 is more")
    assert how.warm_up_doubt("finetune", 8, 1) == ""


def test_images_that_are_trained_on_validate_nothing(
    recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    same = replace(recipe, data=replace(recipe.data, val="train"))
    with pytest.raises(AdaptError, match=r"8 images of .* are training images too"):
        run(with_finetune(same, val_epochs=1), tiny_data, tmp_path / "d.safetensors")
    missing = replace(recipe, data=replace(recipe.data, val="absent"))
    with pytest.raises(AdaptError, match="absent"):
        run(with_finetune(missing, val_epochs=1), tiny_data, tmp_path / "d.safetensors")
