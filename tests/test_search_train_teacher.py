from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_parts import StoppedError, random_architecture, stop_after
from safetensors.torch import load_file

from adapt.artifacts import file_hash
from adapt.data.coco import CocoSplit
from adapt.detector.file import read_detector_info
from adapt.errors import AdaptError
from search.recipe.recipe import Recipe
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.session import Session
from search.train.teacher import TrainedFiles, pyramid_loss


def pyramid(seed: int) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {str(n): torch.randn(2, 3, 40 // n, 30 // n, generator=chance) for n in (1, 2)}


def test_scale_and_offset_of_channels_cost_nothing_and_the_opposite_costs_two() -> None:
    teacher = pyramid(0)
    factors = torch.tensor([0.5, 2.0, 30.0]).view(1, 3, 1, 1)
    same = {level: factors * maps + 7 for level, maps in teacher.items()}
    opposite = {level: -maps for level, maps in same.items()}
    assert pyramid_loss(same, teacher) == pytest.approx(0, abs=1e-4)
    assert pyramid_loss(opposite, teacher) == pytest.approx(2, abs=1e-4)
    assert pyramid_loss(pyramid(1), teacher) == pytest.approx(1, abs=0.05)


def test_the_loss_is_one_minus_the_correlation() -> None:
    student, teacher = ({"0": maps["1"]} for maps in (pyramid(2), pyramid(3)))
    mixed = {"0": student["0"] + teacher["0"]}
    rows = [maps["0"].transpose(0, 1).flatten(1) for maps in (mixed, teacher)]
    wanted = [1 - torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows, strict=True)]
    assert pyramid_loss(mixed, teacher) == pytest.approx(
        float(torch.stack(wanted).mean()), abs=1e-5
    )


def test_a_constant_channel_has_a_finite_gradient() -> None:
    student = {"0": torch.zeros(2, 3, 4, 4, requires_grad=True)}
    pyramid_loss(student, {"0": torch.ones(2, 3, 4, 4)}).backward()
    assert student["0"].grad is not None
    assert student["0"].grad.isfinite().all()


def taught(recipe: Recipe, weight: float = 6.0, **changes: object) -> Recipe:
    return recipe.changed({"finetune": {"teacher_weight": weight, **changes}}, "test")


@pytest.fixture
def teacher(tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path) -> Path:
    """A trained detector of another backbone."""
    architecture = random_architecture(tiny_recipe.space.load(), seed=3)
    return run_finetune(tiny_recipe, architecture, tiny_data, tmp_path / "teacher.safetensors")


def test_a_detector_comes_closer_to_its_teacher_which_stays_what_it_is(
    tiny_recipe: Recipe, tiny_data: CocoSplit, teacher: Path, tmp_path: Path
) -> None:
    recipe = taught(tiny_recipe, epochs=12, milestones=[])
    architecture = random_architecture(recipe.space.load(), seed=1)
    before, path = file_hash(teacher), tmp_path / "d.safetensors"
    trained = TrainedFiles(teacher=teacher)
    run_finetune(recipe, architecture, tiny_data, path, Session(), trained)
    entries = read_log(path.with_suffix(".training.jsonl"))
    distances = [entry["teacher"] / 6 for entry in entries]
    assert 0.3 < distances[0] < 1.2
    assert distances[-1] < 0.8 * distances[0]
    for entry in entries:
        summands = entry["classification"] + entry["bbox_regression"] + entry["teacher"]
        assert entry["loss"] == pytest.approx(summands, rel=1e-5)
    assert file_hash(teacher) == before
    assert read_detector_info(path)[1]["teacher_sha256"] == before


def test_a_stopped_lesson_continues_as_if_it_had_not_been_stopped(
    tiny_recipe: Recipe, tiny_data: CocoSplit, teacher: Path, tmp_path: Path
) -> None:
    recipe, trained = taught(tiny_recipe), TrainedFiles(teacher=teacher)
    architecture = random_architecture(recipe.space.load(), seed=1)
    paths = [tmp_path / "whole.safetensors", tmp_path / "stopped.safetensors"]
    run_finetune(recipe, architecture, tiny_data, paths[0], Session(), trained)
    stopped = Session(progress=stop_after(3))
    with pytest.raises(StoppedError):
        run_finetune(recipe, architecture, tiny_data, paths[1], stopped, trained)
    run_finetune(recipe, architecture, tiny_data, paths[1], Session(), trained)
    whole, resumed = map(load_file, paths)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_teacher_that_would_be_of_no_use_is_refused(
    tiny_recipe: Recipe, tiny_data: CocoSplit, teacher: Path, tmp_path: Path
) -> None:
    path, architecture = (
        tmp_path / "d.safetensors",
        random_architecture(tiny_recipe.space.load(), seed=1),
    )

    def train(recipe: Recipe, trained: TrainedFiles) -> None:
        run_finetune(recipe, architecture, tiny_data, path, Session(), trained)

    with pytest.raises(AdaptError, match=r"teacher_weight is 0, so that teacher .* set it"):
        train(tiny_recipe, TrainedFiles(teacher=teacher))
    with pytest.raises(AdaptError, match="teacher_weight is 6 and there is no teacher; pass"):
        train(taught(tiny_recipe), TrainedFiles())
    wider = replace(tiny_recipe.detector, fpn_width=16)
    with pytest.raises(AdaptError, match="has fpn_width 8, the detector to train has 16"):
        train(replace(taught(tiny_recipe), detector=wider), TrainedFiles(teacher=teacher))
    with pytest.raises(AdaptError, match="does not exist"):
        train(taught(tiny_recipe), TrainedFiles(teacher=tmp_path / "none.safetensors"))
    with pytest.raises(AdaptError, match="teacher_weight must not be negative, got -1"):
        taught(tiny_recipe, -1.0)
    assert not path.exists()
