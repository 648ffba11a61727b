import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import (
    TINY_SPACE,
    StoppedError,
    assert_same_state,
    decide,
    random_choices,
    stop_after,
)
from torch import Tensor, nn

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.expectation import CostForm, CostModel
from adapt.cost.units import madds
from adapt.data.coco import CocoSplit
from adapt.errors import AdaptError
from adapt.network.mixed import SharedBlock
from adapt.network.weights import PUBLISHED, source_backbone
from search.derive.finished import load_searched
from search.recipe.optimisation import SearchRecipe
from search.recipe.recipe import Recipe
from search.supernet.bilevel import BilevelSearch, build_supernet
from search.supernet.log_entry import log_entry
from search.supernet.multiplier import Multiplier
from search.supernet.run import run_search
from search.train.session import Session


def costs(recipe: Recipe) -> CostModel:
    space, config = recipe.space.load(), recipe.detector_config(3)
    return DetectorSpace(space, config, recipe.measured_size()).costs(madds)


def search_of(recipe: Recipe, data: CocoSplit) -> BilevelSearch:
    return BilevelSearch(recipe, data, costs(recipe))


def run(recipe: Recipe, data: CocoSplit, out: Path, **options: Any) -> Path:
    return run_search(recipe, data, costs(recipe), out, Session(**options))


def with_search(recipe: Recipe, **changes: Any) -> Recipe:
    return replace(recipe, search=replace(recipe.search, **changes))


def states(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)["states"]
    return content


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "search.jsonl").read_text().splitlines()]


def changed_parameters(search: BilevelSearch, step: Callable[[], object]) -> set[str]:
    before = {n: p.detach().clone() for n, p in search.detector.named_parameters()}
    step()
    after = search.detector.named_parameters()
    return {name for name, parameter in after if not torch.equal(parameter, before[name])}


def choice_names(search: BilevelSearch) -> set[str]:
    chosen = {id(p) for p in search.arch_parameters}
    return {name for name, p in search.detector.named_parameters() if id(p) in chosen}


def test_architecture_step_changes_every_alpha_and_beta_and_nothing_else(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    search = search_of(tiny_recipe, tiny_data)
    batch = next(search.batches(1, 0))
    changed = changed_parameters(search, lambda: search.arch_step(batch))
    with_alternatives = {  # softmax over one candidate has no gradient, only weight decay
        name for name in choice_names(search) if search.detector.get_parameter(name).numel() > 1
    }
    assert with_alternatives <= changed <= choice_names(search)


def test_weight_step_changes_sampled_operations_and_no_choice(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    search = search_of(tiny_recipe, tiny_data)
    batch = next(search.batches(0, 0))
    changed = changed_parameters(search, lambda: search.weight_step(0, batch))
    assert not changed & choice_names(search)
    assert {name.partition(".")[0] for name in changed} == {"backbone", "head"}
    for number, block in enumerate(search.supernet.blocks):
        assert isinstance(block, SharedBlock)
        for position, chosen in enumerate(search.supernet.paths[number]):
            prefix = f"backbone.body.blocks.{number}.operations.{position}.ops."
            trained = {int(n.removeprefix(prefix)[0]) for n in changed if n.startswith(prefix)}
            parameters = list(block.operations[position].ops[chosen].parameters())
            assert trained == ({chosen} if parameters else set())


def sampled_paths(search: BilevelSearch, steps: range) -> list[Any]:
    batch, paths = next(search.batches(0, 0)), []
    for step in steps:
        search.weight_step(step, batch)
        paths.append(search.supernet.paths)
    return paths


def test_sampling_is_uniform_in_the_warm_up_and_follows_alpha_afterwards(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    search = search_of(tiny_recipe, tiny_data)
    choices = random_choices(search.supernet.space, seed=1)
    decide(search.supernet, choices)
    warmup, total = search.schedule.warmup_steps, search.schedule.total_steps
    uniform = sampled_paths(search, range(warmup))
    assert all(paths != uniform[0] for paths in uniform[1:])  # every step draws anew
    assert sampled_paths(search, range(warmup, total)) == [choices[0]] * (total - warmup)


def test_weight_step_after_an_architecture_step_still_freezes_the_choices(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    search = search_of(tiny_recipe, tiny_data)
    search.arch_step(next(search.batches(1, 0)))
    batch = next(search.batches(0, 0))
    changed = changed_parameters(search, lambda: search.weight_step(5, batch))
    assert changed
    assert not changed & choice_names(search)


def test_same_seed_gives_the_same_search(
    tiny_recipe: Recipe, tiny_data: CocoSplit, whole_search: Path, tmp_path: Path
) -> None:
    torch.rand(7)  # whatever else happened in the process
    again = run(tiny_recipe, tiny_data, tmp_path)
    assert log(tmp_path) == log(whole_search)
    assert_same_state(states(again), states(whole_search / "supernet.pt"))


def test_other_seed_gives_another_search(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    run(tiny_recipe, tiny_data, tmp_path / "a", limit_steps=1)
    run(replace(tiny_recipe, seed=1), tiny_data, tmp_path / "b", limit_steps=1)
    assert log(tmp_path / "a")[0]["weight_loss"] != log(tmp_path / "b")[0]["weight_loss"]


@pytest.mark.parametrize(
    ("stop", "every"),
    [
        (1, 1),  # before there is a checkpoint
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(5, 1, marks=pytest.mark.slow),
        pytest.param(7, 1, marks=pytest.mark.slow),
        pytest.param(7, 2, marks=pytest.mark.slow),
        (7, 3),
    ],
)
def test_resumed_search_is_the_uninterrupted_one_bit_for_bit(
    tiny_recipe: Recipe,
    tiny_data: CocoSplit,
    whole_search: Path,
    tmp_path: Path,
    stop: int,
    every: int,
) -> None:
    recipe, whole = with_search(tiny_recipe, arch_every=every), whole_search
    if recipe != tiny_recipe:
        whole = run(recipe, tiny_data, tmp_path / "whole").parent
    with pytest.raises(StoppedError):
        run(recipe, tiny_data, tmp_path / "parts", progress=stop_after(stop))
    resumed = run(recipe, tiny_data, tmp_path / "parts")
    assert_same_state(states(resumed), states(whole / "supernet.pt"))
    assert log(tmp_path / "parts") == log(whole)


def test_resuming_a_finished_search_changes_nothing(
    tiny_recipe: Recipe, tiny_data: CocoSplit, whole_search: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(whole_search, tmp_path / "out")) / "supernet.pt"
    before = path.read_bytes(), log(path.parent)
    run(tiny_recipe, tiny_data, path.parent)
    assert (path.read_bytes(), log(path.parent)) == before


def other_space(recipe: Recipe) -> Recipe:
    Path(recipe.space.preset).write_text(TINY_SPACE.replace("[6, 10, 2]", "[6, 12, 2]"))
    return recipe


@pytest.mark.parametrize(
    "change",
    [
        lambda recipe: replace(recipe, seed=1),
        lambda recipe: with_search(recipe, cost_weight=1.0),
        other_space,
    ],
)
def test_checkpoint_of_another_run_is_refused(
    tiny_recipe: Recipe,
    tiny_data: CocoSplit,
    whole_search: Path,
    tmp_path: Path,
    change: Callable[[Recipe], Recipe],
) -> None:
    shutil.copy(whole_search / "supernet.pt", tmp_path)
    with pytest.raises(AdaptError, match=r"supernet.pt belongs to another run .* another --out"):
        run(change(tiny_recipe), tiny_data, tmp_path)


def test_damaged_checkpoint_is_refused(
    tiny_recipe: Recipe, tiny_data: CocoSplit, whole_search: Path, tmp_path: Path
) -> None:
    content = (whole_search / "supernet.pt").read_bytes()
    (tmp_path / "supernet.pt").write_bytes(content[:-1000])
    with pytest.raises(AdaptError, match=r"supernet.pt is damaged .* delete it to start over"):
        run(tiny_recipe, tiny_data, tmp_path)


def test_diverging_search_stops_with_the_images(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    weights = replace(tiny_recipe.search.weights, lr=1e30)
    with pytest.raises(AdaptError, match=r"on images \[\d, \d\]; lower the learning rate"):
        run(with_search(tiny_recipe, weights=weights), tiny_data, tmp_path)


def decided_cost(recipe: Recipe, data: CocoSplit) -> float:
    """Expected cost after five architecture steps."""
    search = search_of(recipe, data)
    batches = search.batches(1, 0)
    for _ in range(5):
        search.arch_step(next(batches))
    return float(search.expected_cost().detach())


@pytest.mark.parametrize("penalty", ["linear", "log"])
def test_higher_cost_weight_leads_to_a_cheaper_search(
    tiny_recipe: Recipe, tiny_data: CocoSplit, penalty: str
) -> None:
    start = float(search_of(tiny_recipe, tiny_data).expected_cost().detach())
    free, cheap = (
        decided_cost(with_search(tiny_recipe, penalty=penalty, cost_weight=weight), tiny_data)
        for weight in (0.0, 1e4)
    )
    assert cheap < min(start, free)


@pytest.mark.parametrize(("penalty", "value"), [("linear", 0.5 * 100), ("log", 0.5 * 2)])
def test_penalty_is_lambda_times_the_cost_or_the_logarithm_of_what_is_searched(
    penalty: str, value: float
) -> None:
    recipe, cost = SearchRecipe(penalty=penalty, cost_weight=0.5), torch.tensor(100.0)
    assert float(Multiplier(recipe, None).penalty(cost, 100.0)) == value
    with_heads = Multiplier(recipe, None, unchanging=900.0).penalty(cost + 900, 1000.0)
    assert float(with_heads) == (0.5 * 1000 if penalty == "linear" else value)


def gradients(value: Tensor, search: BilevelSearch) -> list[Tensor]:
    return list(torch.autograd.grad(value, search.arch_parameters, materialize_grads=True))


@pytest.mark.parametrize("form", ["exact", "literal"])
def test_gradient_of_the_penalty_is_that_of_the_cost_over_its_searchable_part(
    tiny_recipe: Recipe, tiny_data: CocoSplit, form: CostForm
) -> None:
    search = search_of(with_search(tiny_recipe, cost_form=form, cost_weight=0.3), tiny_data)
    # The literal form counts the pyramid's input at its widest: no choice changes it.
    unread = [torch.zeros_like(tap) for tap in search.cost.taps]
    part = replace(search.cost, fixed=0.0, taps=search.cost.taps if form == "exact" else unread)
    searchable = float(part.expected(*search.supernet.probabilities(), form).detach()) / 1e9
    found = gradients(search.multiplier.penalty(search.expected_cost(), 1.0), search)
    for penalty, cost in zip(found, gradients(search.expected_cost(), search), strict=True):
        torch.testing.assert_close(penalty, 0.3 * cost / (searchable * math.log(10)))


def test_paper_recipe_presses_like_its_ancestor_and_not_like_a_logarithm_of_the_whole() -> None:
    recipe = Recipe.load("paper")
    settings, size = recipe.search, recipe.measured_size()
    supernet = settings.supernet(recipe.space.load(), torch.Generator().manual_seed(0))
    cost = recipe.detectors(80, size).costs(madds)
    no_taps = [torch.zeros_like(tap) for tap in cost.taps]
    blocks = replace(cost, fixed=0.0, taps=no_taps)  # FNA counts the searched blocks alone

    def norms(cost: CostModel, unchanging: float) -> list[float]:
        """L2 norm of the penalty's gradient with respect to all alphas, and all betas."""
        multiplier = Multiplier(settings, None, unchanging / 1e9)
        value = multiplier.penalty(cost.expected(*supernet.probabilities()) / 1e9, 0.0)
        parts = list(supernet.alphas.parameters()), list(supernet.betas)
        of = (torch.autograd.grad(value, part, retain_graph=True) for part in parts)
        return [float(torch.cat(gradients).norm()) for gradients in of]

    whole, ancestor = norms(cost, 0.0), norms(blocks, 0.0)
    assert whole == pytest.approx([1.6e-5, 1.3e-5], rel=0.05)
    assert ancestor == pytest.approx([3.9e-4, 3.2e-4], rel=0.05)
    # Laterals and P6 are searched too: they are 8 % of what lambda's logarithm is of.
    assert norms(cost, cost.unchanging()) == pytest.approx(ancestor, rel=0.1)


def test_dearer_heads_change_nothing_of_the_penalty(
    tiny_recipe: Recipe, tiny_data: CocoSplit
) -> None:
    deep = replace(tiny_recipe, detector=replace(tiny_recipe.detector, head_depth=4))
    shallow_search, deep_search = search_of(tiny_recipe, tiny_data), search_of(deep, tiny_data)
    cost, deep_cost = shallow_search.expected_cost(), deep_search.expected_cost()
    assert deep_cost > 1.2 * cost
    penalty, deep_penalty = (
        search.multiplier.penalty(search.expected_cost(), 1.0)
        for search in (shallow_search, deep_search)
    )
    torch.testing.assert_close(penalty, deep_penalty)


def test_cost_is_in_giga_madds_or_milliseconds(tiny_recipe: Recipe, tiny_data: CocoSplit) -> None:
    in_g, in_ms = (
        float(search_of(with_search(tiny_recipe, cost=kind), tiny_data).expected_cost().detach())
        for kind in ("madds", "latency")
    )
    assert in_ms == pytest.approx(1e9 * in_g)


def test_log_tells_how_decided_the_search_is(tiny_recipe: Recipe, tiny_data: CocoSplit) -> None:
    search = search_of(tiny_recipe, tiny_data)
    entry = log_entry(search, 1)
    assert entry["width_entropy"] == pytest.approx(1)  # betas start at the uniform distribution
    assert entry["op_entropy"] == pytest.approx(1, abs=1e-3)
    means = [1 / len(block.widths) for block in search.supernet.space.blocks]
    assert entry["gate_scale"] == pytest.approx(means)


def test_space_of_one_width_per_block_can_be_searched(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    text = TINY_SPACE
    for widths in ("[4, 8, 4]", "[4, 12, 4]", "[6, 10, 2]", "[8, 16, 8]"):
        text = text.replace(widths, "[8, 8, 1]")
    Path(tiny_recipe.space.preset).write_text(text)
    supernet, _, _ = load_searched(run(tiny_recipe, tiny_data, tmp_path, limit_steps=1))
    assert [block.width for block in supernet.argmax().blocks] == [8] * 4


@pytest.mark.parametrize("mask", ["non-overlapping", "overlapping", "individual"])
def test_finished_search_is_read_as_it_ended(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path, mask: str
) -> None:
    recipe = with_search(tiny_recipe, mask=mask)
    path = run(recipe, tiny_data, tmp_path, limit_steps=1)
    supernet, loaded, _ = load_searched(path)
    assert loaded == recipe
    assert supernet.argmax().to_dict()["blocks"] == log(tmp_path)[-1]["argmax"]
    names = [name for name, _ in supernet.named_parameters() if name.startswith("alphas.")]
    ended: dict[str, Tensor] = states(path)["detector"]
    for name in names:
        assert torch.equal(supernet.get_parameter(name), ended[f"backbone.body.{name}"])


def test_unfinished_search_cannot_be_derived_from(
    tiny_recipe: Recipe, tiny_data: CocoSplit, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        run(tiny_recipe, tiny_data, tmp_path, progress=stop_after(5))
    with pytest.raises(AdaptError, match="stopped after 4 of 8 steps; run the same `adapt search`"):
        load_searched(tmp_path / "supernet.pt")


def test_search_starts_from_the_published_weights_unless_asked_for_scratch(
    tiny_data: CocoSplit,
) -> None:
    wanted = PUBLISHED["mobilenet_v2"]
    if importlib.util.find_spec(wanted.module) is None:
        pytest.skip(f"{wanted.package} is not installed")
    recipe = replace(Recipe(), space=replace(Recipe().space, width_grid=1000))
    mapped, scratch = (
        build_supernet(replace(recipe, init=init), recipe.space.load(), tiny_data).stem
        for init in ("imagenet", "scratch")
    )
    source = source_backbone("mobilenet_v2").features[0]
    assert same(mapped, source)
    assert not same(scratch, source)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
