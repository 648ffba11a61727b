"""Options of a search: paths, memory, precision, targets, and what it writes down."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import (
    StoppedError,
    decide,
    random_architecture,
    random_choices,
    stop_after,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import CostModel
from adapt.cost.units import madds
from adapt.data.coco import CocoSplit
from adapt.data.dataset import Batch
from adapt.errors import AdaptError
from search.recipe.optimisation import SearchRecipe, parse_paths
from search.recipe.recipe import Recipe
from search.supernet.bilevel import BilevelSearch
from search.supernet.multiplier import Multiplier
from search.supernet.plot import plot_search
from search.supernet.run import run_search
from search.train.finetune import run_finetune
from search.train.log import read_log
from search.train.session import Session


def costs(recipe: Recipe) -> CostModel:
    space, config = recipe.space.load(), recipe.detector_config(3)
    return DetectorSpace(space, config, recipe.measured_size()).costs(madds)


def searched(recipe: Recipe, data: CocoSplit) -> BilevelSearch:
    """A search in double precision after three weight steps and two architecture steps.

    Adam's first steps are little more than the gradient's sign, and BatchNorms over the few values
    of a tiny image amplify rounding: in fp32 that of 1e-6 in weights turns signs of alpha's
    gradient. In double precision only another computation can make a difference.
    """
    search = BilevelSearch(recipe, data, costs(recipe))
    search.detector.double()
    weights, arch = search.batches(0, 0), search.batches(1, 0)
    for step in range(3):
        search.weight_step(step, in_double(next(weights)))
    for step in range(2):
        search.arch_step(in_double(next(arch)), step)
    return search


def in_double(batch: Batch) -> Batch:
    images, targets = batch
    boxes = [{**target, "boxes": target["boxes"].double()} for target in targets]
    return [image.double() for image in images], boxes


def assert_close(first: BilevelSearch, second: BilevelSearch, tolerance: float) -> None:
    pairs = zip(first.detector.named_parameters(), second.detector.parameters(), strict=True)
    for (name, a), b in pairs:
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"channels_last": False},
        {"recompute": "norms"},
        {"recompute": "operation"},
        {"recompute": "block", "channels_last": False},
    ],
)
def test_memory_options_change_no_result(
    tiny_recipe: Recipe, tiny_data: CocoSplit, options: dict[str, Any]
) -> None:
    plain = searched(tiny_recipe, tiny_data)
    assert_close(plain, searched(tiny_recipe.with_compute(**options), tiny_data), 1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_search_is_the_plain_one(tiny_recipe: Recipe, tiny_data: CocoSplit) -> None:
    plain = searched(tiny_recipe, tiny_data)
    assert_close(plain, searched(tiny_recipe.with_compute(compile=True), tiny_data), 1e-9)


def test_search_in_bf16_takes_nearly_the_same_steps_with_weights_in_fp32(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    plain = BilevelSearch(tiny_recipe, tiny_data, costs(tiny_recipe))
    mixed_recipe = tiny_recipe.with_compute(amp="bf16")
    mixed = BilevelSearch(mixed_recipe, tiny_data, costs(mixed_recipe))
    batch = next(plain.batches(0, 0))
    losses = [search.weight_step(0, batch) for search in (plain, mixed)]
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all(p.dtype == torch.float32 for p in mixed.detector.parameters())


def test_anchors_stay_in_fp32_when_networks_compute_in_bf16(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    recipe = tiny_recipe.with_compute(amp="bf16")
    search = BilevelSearch(recipe, tiny_data, costs(recipe))
    features = search.detector.backbone(torch.zeros(1, 3, 64, 64))
    assert {tensor.dtype for tensor in features.values()} == {torch.float32}
    heads = search.detector.head(list(features.values()))
    assert {tensor.dtype for tensor in heads.values()} == {torch.float32}


def test_accumulated_step_has_the_mean_gradient_of_its_parts(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    how = replace(tiny_recipe.search.weights, batch_size=4, momentum=0, weight_decay=0, clip_norm=0)
    recipe = replace(tiny_recipe, search=replace(tiny_recipe.search, weights=how))

    def moved(recipe: Recipe, part: Callable[[Any], Any]) -> list[Tensor]:
        search = BilevelSearch(recipe, tiny_data, costs(recipe))
        before = [p.detach().clone() for p in search.weights]
        images, targets = next(search.batches(0, 0))
        search.weight_step(0, (part(images), part(targets)))
        return [p.detach() - b for p, b in zip(search.weights, before, strict=True)]

    whole = moved(recipe.with_accumulate(search=2), lambda items: items)
    halves = [moved(recipe, lambda items: items[:2]), moved(recipe, lambda items: items[2:])]
    for step, *parts in zip(whole, *halves, strict=True):
        torch.testing.assert_close(step, sum(parts) / 2, rtol=1e-3, atol=1e-6)


def trained_operations(search: BilevelSearch, step: int) -> dict[str, set[int]]:
    """Candidates whose weights a weight step changes, by position."""
    named = {n: p for n, p in search.supernet.named_parameters() if ".ops." in n}
    before = {name: p.detach().clone() for name, p in named.items()}
    search.weight_step(step, next(search.batches(0, 0)))
    found: dict[str, set[int]] = {}
    for name, p in named.items():
        position, _, rest = name.partition(".ops.")
        found.setdefault(position, set())
        if not torch.equal(p, before[name]):
            found[position].add(int(rest.partition(".")[0]))
    return found


def number_of_convolutions(search: BilevelSearch) -> dict[str, int]:
    names = [n for n, _ in search.supernet.named_parameters() if ".ops." in n]
    positions = {name.partition(".ops.")[0] for name in names}
    return {
        position: len({n.split(".ops.")[1][0] for n in names if n.startswith(position + ".ops.")})
        for position in positions
    }


@pytest.mark.parametrize("paths", [2, "all"])
def test_weight_step_trains_as_many_operations_as_asked(
    tiny_recipe: Recipe, tiny_data: CocoSplit, paths: Any
) -> None:
    recipe = tiny_recipe.with_search(weight_paths=paths)
    search = BilevelSearch(recipe, tiny_data, costs(recipe))
    candidates = number_of_convolutions(search)
    for position, trained in trained_operations(search, 0).items():
        most = candidates[position] if paths == "all" else min(paths, candidates[position])
        skips = paths != "all"  # skip may be one of the two, and has no weights
        assert most - skips <= len(trained) <= most


def test_bi_sampling_trains_operations_that_the_probabilities_have_given_up(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    recipe = tiny_recipe.with_search(bi_sampling=True)
    search = BilevelSearch(recipe, tiny_data, costs(recipe))
    decide(search.supernet, random_choices(search.supernet.space, seed=1))
    generator = torch.Generator().manual_seed(0)
    first, second = search._weight_paths(generator, search.schedule.warmup_steps)
    alphas = search.supernet.alphas.parameters()
    for a, b, alpha in zip(chain(*first), chain(*second), alphas, strict=True):
        assert a == int(alpha.argmax())
        assert (a != b) == (len(alpha) > 1)
    positions = trained_operations(search, search.schedule.warmup_steps)
    assert any(len(trained) == 2 for trained in positions.values())


@pytest.mark.parametrize("paths", [1, 2])
def test_architecture_steps_on_sampled_paths_move_alpha(
    tiny_recipe: Recipe, tiny_data: CocoSplit, paths: int
) -> None:
    recipe = tiny_recipe.with_search(arch_paths=paths, cost_weight=0.0, arch_weight_decay=0.0)
    search = BilevelSearch(recipe, tiny_data, costs(recipe))
    before = [alpha.detach().clone() for alpha in search.supernet.alphas.parameters()]
    search.arch_step(next(search.batches(1, 0)))
    moved = [
        (alpha.detach() != start).sum()
        for alpha, start in zip(search.supernet.alphas.parameters(), before, strict=True)
        if len(alpha) > 1
    ]
    assert all(number >= 2 for number in moved)


@pytest.mark.parametrize(
    ("text", "weight", "arch"), [("all", "all", "all"), ("2", 2, 2), ("1:all", 1, "all")]
)
def test_paths_are_read_for_both_kinds_of_steps(text: str, weight: object, arch: object) -> None:
    assert parse_paths(text) == {"weight_paths": weight, "arch_paths": arch}


@pytest.mark.parametrize("text", ["", "0", "-1", "some", "1:2:3", "1:"])
def test_other_paths_are_refused(text: str) -> None:
    with pytest.raises(AdaptError, match="--paths must be like all, 2 or 1:all"):
        parse_paths(text)


def spread(recipe: Recipe) -> tuple[float, float]:
    """Costs of the cheapest and the dearest network in G MAdds."""
    model = costs(recipe)
    space = recipe.space.load()
    ends = []
    for pick in (0, -1):
        widths = [torch.eye(len(b.widths))[pick].double() for b in space.blocks]
        ops = []
        for number, block in enumerate(space.blocks):
            first = model.first[number][pick, pick]
            later = model.later[number][pick]
            best = torch.argmin if pick == 0 else torch.argmax
            chosen = [first, *[later] * (block.num_ops - 1)]
            ops.append([torch.eye(len(c))[int(best(c))].double() for c in chosen])
        ends.append(float(model.expected(ops, widths)) / 1e9)
    return ends[0], ends[1]


@pytest.mark.parametrize(("share", "binding"), [(0.25, True), (0.9, False)])
def test_search_with_a_target_ends_near_it_or_below_where_it_does_not_bind(
    tiny_recipe: Recipe, tiny_data: CocoSplit, share: float, binding: bool
) -> None:
    least, most = spread(tiny_recipe)
    target = least + share * (most - least)
    recipe = tiny_recipe.with_search(
        target=f"{target}G", target_rate=5.0, arch_lr=0.1, target_range=(1e-3, 1e4)
    )
    search = BilevelSearch(recipe, tiny_data, costs(recipe))
    batches = search.batches(1, 0)
    found = []
    for step in range(80):
        search.arch_step(next(batches), step)
        found.append(search.argmax_cost())
    ended = sum(found[-20:]) / 20
    if binding:
        assert ended == pytest.approx(target, rel=0.05)
        assert search.multiplier.value != recipe.search.cost_weight
    else:
        assert ended < target
        assert search.multiplier.value == 1e-3


def test_target_that_no_network_reaches_names_the_cheapest(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    recipe = tiny_recipe.with_search(target="0.1M")
    with pytest.raises(AdaptError, match=r"costs 0.1M or less, the cheapest .*M; raise the target"):
        BilevelSearch(recipe, tiny_data, costs(recipe))


def test_search_that_misses_its_target_says_so_at_its_end(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    least, most = spread(tiny_recipe)
    heard: list[str] = []
    for share in (0.01, 2.0):
        target = least + share * (most - least)
        recipe = tiny_recipe.with_search(target=f"{target}G", arch_lr=1e-9)
        session = Session(warn=heard.append)
        run_search(recipe, tiny_data, costs(recipe), tmp_path / str(share), session)
    (missed,) = (line for line in heard if "above its target" in line)
    assert f"derive with --budget {least + 0.01 * (most - least)}G" in missed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "4ms"}, "target '4ms' does not fit cost 'madds'"),
        ({"target": "4G", "cost": "latency"}, "target '4G' does not fit cost 'latency'"),
        ({"target": "fast"}, "target must be like 4.0ms"),
        ({"target": "4G", "penalty": "linear"}, "a target has a penalty of its own"),
        ({"target": "4G", "cost_form": "literal"}, "a target has a penalty of its own"),
        ({"target_range": (0.0, 1.0)}, "target_range must be positive and rising"),
        ({"weight_paths": 0}, "weight_paths must be at least 1"),
        ({"bi_sampling": True, "weight_paths": "all"}, "bi_sampling trains two single paths"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchRecipe(**fields)


def test_log_and_event_files_follow_every_probability(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe = tiny_recipe.with_search(target="0.05G", target_rate=0.3)
    run_search(recipe, tiny_data, costs(recipe), tmp_path)
    entries = read_log(tmp_path / "search.jsonl")
    assert [entry["epoch"] for entry in entries] == [1, 2, 3, 4]
    space = recipe.space.load()
    for entry in entries:
        assert entry["target"] == 0.05
        for block, groups in zip(space.blocks, entry["probabilities"].values(), strict=True):
            assert list(map(int, groups["width"])) == list(block.widths)
            assert len(groups) == 1 + block.num_ops
            for group in groups.values():
                assert sum(group.values()) == pytest.approx(1)
    assert entries[0]["arch_loss"] is None
    assert entries[-1]["cost_weight"] != entries[0]["cost_weight"]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = [event.value for event in board.Scalars("expected_cost")]
    assert found == pytest.approx([entry["expected_cost"] for entry in entries])
    assert "block 2 op 3/skip" in board.Tags()["scalars"]


def test_plot_of_a_search_has_a_panel_for_every_choice(whole_search: Path, tmp_path: Path) -> None:
    plot_search(whole_search / "search.jsonl", tmp_path / "search.png")
    assert (tmp_path / "search.png").stat().st_size > 30_000


def test_entries_after_the_last_checkpoint_are_written_again_by_the_resumed_search(
    tiny_recipe: Recipe, tiny_data: CocoSplit, whole_search: Path, tmp_path: Path
) -> None:
    def run(**options: Any) -> None:
        run_search(tiny_recipe, tiny_data, costs(tiny_recipe), tmp_path, Session(**options))

    with pytest.raises(StoppedError):
        run(progress=stop_after(5))
    log = tmp_path / "search.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])
    with log.open("a") as file:  # killed between the log and the checkpoint, then in the log
        file.write(json.dumps({**last, "step": last["step"] + 2}) + '\n{"step": 8, "ep')
    run()
    assert read_log(log) == read_log(whole_search / "search.jsonl")


def test_diverging_runs_save_the_images_of_the_batch(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    weights = replace(tiny_recipe.search.weights, lr=1e30)
    recipe = replace(tiny_recipe, search=replace(tiny_recipe.search, weights=weights))
    with pytest.raises(AdaptError, match=r"they are listed in .*diverged.json"):
        run_search(recipe, tiny_data, costs(recipe), tmp_path)
    check_diverged(tmp_path / "diverged.json", tiny_data)


def test_diverging_finetuning_saves_the_images_of_the_batch(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe, finetune=replace(tiny_recipe.finetune, lr=1e30))
    architecture = random_architecture(recipe.space.load(), seed=1)
    with pytest.raises(AdaptError, match=r"they are listed in .*d.diverged.json"):
        run_finetune(recipe, architecture, tiny_data, tmp_path / "d.safetensors")
    check_diverged(tmp_path / "d.diverged.json", tiny_data)


def check_diverged(path: Path, data: CocoSplit) -> None:
    content = json.loads(path.read_text())
    files = {image.id: str(image.path) for image in data.images}
    assert content["images"]
    assert all(files[row["id"]] == row["file"] for row in content["images"])
    assert str([row["id"] for row in content["images"]]) in content["reason"]


def test_multiplier_follows_the_ratio_of_cost_and_target_within_its_range() -> None:
    how = SearchRecipe(target="4G", target_rate=0.5, cost_weight=0.02, target_range=(1e-3, 1.0))
    multiplier = Multiplier(how, 4.0)
    multiplier.update(9.0)
    assert multiplier.value == pytest.approx(0.02 * 1.5)
    multiplier.update(4.0)
    assert multiplier.value == pytest.approx(0.02 * 1.5)
    for cost, limit in ((400.0, 1.0), (0.04, 1e-3)):
        for _ in range(20):
            multiplier.update(cost)
        assert multiplier.value == limit


@pytest.mark.parametrize(("cost", "fading"), [(8.0, 1.0), (4.0, 1.0), (3.6, 0.9**20)])
def test_penalty_fades_below_the_target(cost: float, fading: float) -> None:
    multiplier = Multiplier(SearchRecipe(target="4G", cost_weight=0.02), 4.0)
    expected = torch.tensor(cost, requires_grad=True)
    multiplier.penalty(expected, argmax_cost=cost).backward()
    assert float(expected.grad) == pytest.approx(0.02 * fading / (cost * math.log(10)), rel=1e-5)


def test_a_target_is_of_the_whole_detector_and_its_penalty_of_what_is_searched() -> None:
    multiplier = Multiplier(SearchRecipe(target="4G", cost_weight=0.02), 4.0, unchanging=3.0)
    expected = torch.tensor(5.0, requires_grad=True)
    assert float(multiplier.penalty(torch.tensor(4.0), argmax_cost=4.0)) == 0
    multiplier.penalty(expected, argmax_cost=5.0).backward()
    assert float(expected.grad) == pytest.approx(0.02 / (2.0 * math.log(10)), rel=1e-5)
    multiplier.update(5.0)
    assert multiplier.value == pytest.approx(0.02 * (5 / 4) ** 0.5)
