"""Scores of choices are exact where losses add up, and start from the function of the teacher."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recipe_of
from core_parts import tiny

from adapt.architecture import Architecture, Block, Choices
from adapt.cost.units import madds
from adapt.data.coco import CocoSplit
from adapt.data.dataset import DetectionDataset
from adapt.detector.detect import batches_of
from adapt.detector.file import DetectorInfo, save_detector
from adapt.detector.statistics import recalibrate_network
from adapt.errors import AdaptError
from adapt.mapping.activations import batched, unlabelled
from adapt.sources import mobilenet_v2
from adapt.space import SKIP, Operation
from search.derive.derive import derive, derive_front
from search.derive.finished import SearchFiles
from search.derive.held_out import held_out_loss
from search.derive.scores import Scores
from search.recipe.budget import Budget
from search.recipe.recipe import Recipe
from search.recipe.search_cost import network_costs
from search.score.replaced import Replacement
from search.score.run import run_score
from search.score.scoring import score
from search.train.world import World

SPACE = tiny()
SOURCE = Architecture(
    SPACE.source,
    SPACE.stem_width,
    SPACE.first_width,
    SPACE.taps,
    tuple(
        Block(block.stride, block.widths[-1], (Operation(3, block.expansions[-1]),) * block.num_ops)
        for block in SPACE.blocks
    ),
)


def additive(architecture: Architecture) -> float:
    """A loss to which every operation and width adds on its own, the later ones less."""
    loss = 1.0
    for number, (block, source) in enumerate(
        zip(architecture.blocks, SOURCE.blocks, strict=True), start=1
    ):
        loss += 0.1 * number * (1 - block.width / source.width)
        for position, (op, has) in enumerate(zip(block.ops, source.ops, strict=False)):
            loss += 0.03 * (1 + position) * (1 - op.expansion / has.expansion)
        loss += sum(1 / (1 + position) for position in range(len(block.ops), len(source.ops)))
    return loss


def random_choices(seed: int) -> Choices:
    """Choices of the space in which only the last operations of a block are skipped."""
    chance = np.random.default_rng(seed)
    ops = []
    for block in SPACE.blocks:
        kept = int(chance.integers(1, block.num_ops + 1))
        chosen = []
        for position in range(block.num_ops):
            candidates = block.candidates(position)
            kernels = [i for i, op in enumerate(candidates) if op != SKIP]
            chosen.append(
                int(chance.choice(kernels)) if position < kept else candidates.index(SKIP)
            )
        ops.append(chosen)
    return Choices.of(ops, [int(chance.integers(len(block.widths))) for block in SPACE.blocks])


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_the_loss_where_losses_add_up(seed: int) -> None:
    scores = score(additive, SOURCE, SPACE)
    choices = random_choices(seed)
    network = choices.architecture(SPACE)
    # An operation that is skipped has no expansion to lose.
    assert scores.loss == additive(SOURCE) == 1.0
    assert scores.rise(choices) == pytest.approx(additive(network) - 1.0)


def test_every_network_is_measured_once_and_what_contains_the_source_never() -> None:
    measured: list[Architecture] = []

    def loss(architecture: Architecture) -> float:
        measured.append(architecture)
        return additive(architecture)

    scores = score(loss, SOURCE, SPACE)
    assert len(set(measured)) == len(measured)
    assert measured[0] == SOURCE
    for block, of_ops in zip(SPACE.blocks, scores.ops, strict=True):
        for position, values in enumerate(of_ops):
            for op, value in zip(block.candidates(position), values, strict=True):
                if op.expansion == block.expansions[-1]:
                    assert value == 0  # also of larger kernels and of more operations


def test_skipping_an_earlier_operation_never_costs_less_than_a_later_one() -> None:
    def flat(architecture: Architecture) -> float:
        """A loss to which the last operation matters most."""
        return sum(10 if len(block.ops) < 2 else 3 for block in architecture.blocks)

    for block in score(flat, SOURCE, SPACE).ops:
        skips = [values[-1] for values in block[1:]]
        assert skips == sorted(skips, reverse=True)


def test_a_space_that_is_shorter_than_the_source_counts_from_its_own_longest() -> None:
    shorter = replace(SPACE.blocks[1], num_ops=2)
    space = replace(SPACE, blocks=(SPACE.blocks[0], shorter, *SPACE.blocks[2:]))
    skipped = score(additive, SOURCE, space).ops[1][1][-1]
    two, one = (
        additive(replace(SOURCE, blocks=tuple(cut(SOURCE.blocks, kept)))) for kept in (2, 1)
    )
    assert skipped == pytest.approx(one - two)


def cut(blocks: tuple[Block, ...], kept: int) -> Iterator[Block]:
    """The blocks, the second with so many operations."""
    for number, block in enumerate(blocks):
        yield replace(block, ops=block.ops[:kept]) if number == 1 else block


def test_best_sum_within_a_budget_is_found(tiny_recipe: Recipe) -> None:
    recipe, scores = tiny_recipe, score(additive, SOURCE, SPACE)
    model = recipe.detectors(3).costs(madds)
    deriver = scores.deriver(model)
    budget = (deriver.cheapest + deriver.dearest) / 2
    best = deriver.best(budget)
    assert best.cost <= budget
    assert -best.score == pytest.approx(scores.rise(best.choices), abs=1e-6)
    for seed in range(50):
        choices = random_choices(seed)
        if network_costs(choices.architecture(SPACE), recipe, 3, None)["madds"] <= budget:
            assert scores.rise(choices) >= scores.rise(best.choices) - 1e-6


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    scores = score(additive, SOURCE, SPACE)
    scores.save(tmp_path / "scores.json", space="tiny")
    assert Scores.load(tmp_path / "scores.json")[0] == scores
    text = (tmp_path / "scores.json").read_text()
    (tmp_path / "scores.json").write_text(text.replace('"widths"', '"wdiths"'))
    with pytest.raises(
        AdaptError, match=r"scores .*scores\.json is not valid: widths: Field required"
    ):
        Scores.load(tmp_path / "scores.json")


def test_the_source_in_its_own_place_has_the_loss_of_the_teacher(
    tmp_path: Path, tiny_data: CocoSplit
) -> None:
    recipe = Recipe.load("demo").with_data(tiny_data.annotations.parents[1])
    recipe = replace(recipe, input=replace(recipe.input, height=256, width=256))
    train, val = recipe.split("train"), recipe.split("val")
    path, source = tmp_path / "teacher.safetensors", mobilenet_v2()
    info = DetectorInfo(source, recipe.detector_config(3), recipe.input, train.class_names)
    torch.manual_seed(0)
    model = info.build()
    # As those of a trained one, its BatchNorms have the statistics of the images.
    recalibrate_network(model.backbone.body, batched(unlabelled(train, recipe.input)))
    save_detector(path, model, info)
    batches = list(batches_of(DetectionDataset(val, recipe.input), range(len(val)), 8, 0))
    expected = held_out_loss(model, batches, torch.device("cpu"))
    replacement = Replacement(recipe, path, train, val)
    assert replacement.source == source
    # Variances of a batch are divided by n - 1 here and by n there, in every layer.
    assert replacement.loss(source) == pytest.approx(expected, rel=0.03)


def teacher(recipe: Recipe, path: Path, scale: float = 1.0) -> Path:
    """A detector that was not trained, with the weights of one layer multiplied."""
    train = recipe.split("train")
    info = DetectorInfo(SOURCE, recipe.detector_config(3), recipe.input, train.class_names)
    model = info.build()
    with torch.no_grad():
        model.head.classification_head.cls_logits.weight.mul_(scale)
    save_detector(path, model, info)
    return path


def test_a_single_image_whose_last_level_is_one_cell_can_be_scored(
    tiny_space_file: Path, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_space_file).with_data(tiny_data.annotations.parents[1])
    one = replace(recipe.split("val"), images=recipe.split("val").images[:1])
    path = teacher(recipe, tmp_path / "teacher.safetensors")
    replacement = Replacement(recipe, path, recipe.split("train"), one)
    assert np.isfinite(replacement.loss(SOURCE))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_scores_as_the_processor_does(
    tiny_space_file: Path, tiny_data: CocoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_space_file).with_data(tiny_data.annotations.parents[1])
    splits = recipe.split("train"), recipe.split("val")
    path = teacher(recipe, tmp_path / "teacher.safetensors")
    smaller = replace(SOURCE, blocks=tuple(cut(SOURCE.blocks, 1)))
    on_gpu = Replacement(recipe, path, *splits).loss(smaller)
    alone = World(0, 1, torch.device("cpu"))
    monkeypatch.setattr("search.score.replaced.World.alone", lambda: alone)
    assert Replacement(recipe, path, *splits).loss(smaller) == pytest.approx(on_gpu, rel=1e-3)


def test_a_detector_whose_loss_is_no_number_is_not_scored(
    tiny_space_file: Path, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_space_file).with_data(tiny_data.annotations.parents[1])
    path = teacher(recipe, tmp_path / "teacher.safetensors", scale=float("nan"))
    splits = recipe.split("train"), recipe.split("val")
    with pytest.raises(AdaptError, match=r"its loss on .*val\.json is (inf|nan); its training"):
        Replacement(recipe, path, *splits)


@pytest.fixture(scope="module")
def scored(
    tmp_path_factory: pytest.TempPathFactory, tiny_space_file: Path, tiny_data: CocoSplit
) -> Path:
    """Scores of a detector that was not trained, which rank nothing."""
    folder = tmp_path_factory.mktemp("scored")
    recipe = recipe_of(tiny_space_file).with_data(tiny_data.annotations.parents[1])
    path = teacher(recipe, folder / "teacher.safetensors")
    run_score(recipe.with_search(score_networks=10), path, folder / "scores.json")
    return folder / "scores.json"


def test_networks_are_derived_from_a_scores_file_for_any_budget(
    scored: Path, tmp_path: Path
) -> None:
    files = SearchFiles(scored, uncertified=True)
    rows = derive_front(files, tmp_path / "front", 5)
    madds = [row["madds"] for row in rows]
    assert madds == sorted(madds)
    found = derive(files, tmp_path / "arch.json", Budget("madds", madds[-1]))
    assert Architecture.load(tmp_path / "arch.json").blocks
    assert found["madds"] <= madds[-1]


def test_scores_have_no_arg_max_and_no_weights_to_refine_with(scored: Path, tmp_path: Path) -> None:
    files = SearchFiles(scored, uncertified=True)
    with pytest.raises(AdaptError, match=r"scores have no supernet .* --budget or --pareto"):
        derive(files, tmp_path / "arch.json")


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({"tau": 0.41}, r"scores\.json rank random networks with a Kendall tau of 0\.41 only"),
        ({"tau": float("nan")}, "tau of nan only"),
        (None, "has no certificate, so nobody knows"),
    ],
)
def test_scores_that_rank_nothing_are_refused(
    certificate: dict[str, float] | None, message: str, scored: Path, tmp_path: Path
) -> None:
    scores, content = Scores.load(scored)
    kept = ("recipe", "space", "class_names", "identity")
    others = {"certificate": certificate} if certificate else {}
    scores.save(tmp_path / "scores.json", **{name: content[name] for name in kept}, **others)
    with pytest.raises(AdaptError, match=message):
        derive(SearchFiles(tmp_path / "scores.json"), tmp_path / "a.json", Budget("madds", 1e9))
