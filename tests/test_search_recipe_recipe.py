from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import TINY_SPACE

from adapt.data.images import InputSize
from adapt.errors import AdaptError
from search.recipe.optimisation import ComputeRecipe
from search.recipe.recipe import Recipe

ROOT = Path(__file__).parents[1]

# Section IV-A of the paper, by field.
STATED = {
    "search.weights.epochs": 14,
    "search.warmup_epochs": 8,
    "search.weights.optimizer": "sgd",
    "search.weights.lr": 0.02,
    "search.weights.momentum": 0.9,
    "search.weights.weight_decay": 1e-4,
    "search.weights.batch_size": 8,
    "search.arch_lr": 3e-4,
    "search.arch_weight_decay": 1e-3,
    "search.mask": "non-overlapping",
    "search.cost": "madds",
    "finetune.epochs": 24,
    "finetune.batch_size": 32,
    "finetune.optimizer": "sgd",
    "finetune.lr": 0.05,
    "finetune.momentum": 0.9,
    "finetune.weight_decay": 5e-5,
    "init": "imagenet",
    "input": InputSize(800, 1333, "shortest-edge"),
    "cost_size": (800, 1088),
    "space.preset": "mobilenet_v2",
    "space.width_grid": 1,
}
# What the paper leaves open, from its ancestor FNA.
INHERITED = {
    "search.arch_betas": (0.5, 0.999),
    "search.arch_every": 1,
    "search.penalty": "log",
    "search.cost_weight": 0.02,
    "search.gate_norm": "none",
    "search.weights.clip_norm": 35,
    "search.weights.schedule": "step",
    "search.weights.warmup_steps": 500,
    "search.weights.warmup_factor": 1 / 3,
    "search.weights.milestones": (8, 11),
    "search.weights.gamma": 0.1,
}
RETINANET = {
    "detector.fpn_width": 256,
    "detector.head_depth": 4,
    "detector.anchor_size": 32,
    "detector.score_threshold": 0.05,
    "detector.nms_threshold": 0.5,
    "detector.candidates": 1000,
    "detector.detections": 100,
}


def field(recipe: Recipe, path: str) -> Any:
    value: Any = recipe
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(("path", "value"), [*(STATED | INHERITED | RETINANET).items()])
def test_paper_recipe_has_the_papers_numbers(path: str, value: Any) -> None:
    assert field(Recipe.load("paper"), path) == value


def test_published_run_differs_from_the_paper_in_name_data_memory_and_device_only() -> None:
    run, paper = Recipe.load(str(ROOT / "recipes" / "coco-a100.toml")), Recipe.load("paper")
    same = replace(run, name=paper.name, data=paper.data, compute=paper.compute)
    assert replace(same, device=paper.device) == paper
    assert run.compute.meaning == paper.compute.meaning  # what changes results
    assert (run.data.train, run.data.val) == ("train2017", "val2017")


def load(folder: Path, text: str) -> Recipe:
    (folder / "mine.toml").write_text(text)
    return Recipe.load(str(folder / "mine.toml"))


def test_partial_override_keeps_the_papers_search_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, "[search.weights]\nlr = 0.5\n[search]\narch_lr = 0.1")
    paper = Recipe().search
    weights = replace(paper.weights, lr=0.5)
    assert recipe.search == replace(paper, weights=weights, arch_lr=0.1)
    assert recipe.finetune == Recipe().finetune


def test_empty_recipe_is_the_papers_but_for_the_size_of_its_costs(tmp_path: Path) -> None:
    paper = Recipe.load("paper")
    assert load(tmp_path, "") == replace(paper, cost_size=None)


@pytest.mark.parametrize(
    "text",
    [
        "sed = 1",
        "[data]\nrot = 'x'",
        "[space]\ngrid = 2",
        "[input]\nheight = 64\nwidth = 96\nresise = 'letterbox'",
        "[detector]\ndepth = 4",
        "[search]\nlr = 0.1",
        "[search.weights]\nwarmup = 3",
        "[finetune]\nwarmup_epochs = 3",
        "[device]\nthread = 3",
        "[tuning]\nlr = 3",
    ],
)
def test_misspelt_field_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    name = text.splitlines()[-1].partition(" = ")[0]
    with pytest.raises(AdaptError) as caught:
        load(tmp_path, text)
    assert "mine.toml" in str(caught.value)
    assert name in str(caught.value) or "tuning" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("[fine_tune]\nlr = 0.1", "fine_tune: there is no such field; is finetune meant?"),
        (
            "[finetune]\nbatchsize = 3",
            "finetune.batchsize: there is no such field; is batch_size m",
        ),
        ("[input]\nhieght = 64\nwidth = 96", "input.hieght: there is no such field; is height m"),
        ("[search.weights]\nlearning = 3", "use one of epochs, batch_size"),
    ],
)
def test_misspelt_field_names_the_one_that_may_be_meant(
    tmp_path: Path, text: str, fragment: str
) -> None:
    with pytest.raises(AdaptError) as caught:
        load(tmp_path, text)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "field", ["finetune.lr", "search.arch_lr", "finetune.momentum", "detector.score_threshold"]
)
def test_numbers_are_finite(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(AdaptError, match=rf"mine\.toml: {field}: .*finite number, got {value}"):
        load(tmp_path, f"{field} = {value}")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("seed = 'many'", "seed: "),
        ("init = 'zeros'", "init: "),
        ("name = '../../home'", "lead to no other, got '../../home'; use one without slashes"),
        ("name = '..'", "lead to no other, got '..'"),
        ("name = ''", "lead to no other, got ''"),
        ("[search]\nwarmup_epochs = 20", "warmup_epochs must lie in [0, 14], got 20"),
        ("[search]\nwarmup_epochs = -1", "warmup_epochs must lie in [0, 14], got -1"),
        ("[search.weights]\nepochs = 5", "warmup_epochs must lie in [0, 5], got 8"),
        ("[search]\narch_every = 0", "arch_every must be at least 1, got 0"),
        ("[search]\nmask = 'half'", "search.mask: "),
        ("[search]\ncost = 'flops'", "search.cost: "),
        ("[search.weights]\nbatch_size = 0", "batch_size must be at least 1, got 0"),
        ("[search.weights]\nlr = 0", "lr must be positive, got 0"),
        ("[finetune]\nepochs = 0", "epochs must be at least 1, got 0"),
        ("[finetune]\nlr = -1", "lr must be positive, got -1"),
        ("[finetune]\noptimizer = 'adam'", "finetune.optimizer: "),
        ("[finetune]\nmapping = 'copy'", "finetune.mapping: "),
        ("[finetune]\nema = 1", "ema must lie in [0, 1), got 1"),
        ("[finetune]\nval_epochs = -1", "val_epochs must not be negative, got -1"),
        ("[finetune]\nkeep = 'best'", "keep = 'best' goes by the AP on data.val, which val_epochs"),
        ("[finetune]\npatience = 3", "patience = 3 goes by the AP on data.val, which val_epochs"),
        ("[input]\nheight = 65\nwidth = 96", "use 96x96"),
        ("[input]\nheight = 64", "input.width: "),
        ("cost_size = [800]", "cost_size"),
        ("[device]\nruntime = 'abacus'", "device.runtime: "),
        ("[search", "is not TOML"),
    ],
)
def test_wrong_value_is_refused_with_the_fix(tmp_path: Path, text: str, fragment: str) -> None:
    with pytest.raises(AdaptError) as caught:
        load(tmp_path, text)
    assert fragment in str(caught.value)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fragment"), [("papr", "use a preset ("), ("papr.toml", "does not exist")]
)
def test_recipe_that_does_not_exist_is_refused(name: str, fragment: str) -> None:
    with pytest.raises(AdaptError) as caught:
        Recipe.load(name)
    assert fragment in str(caught.value)


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, "weights = 'w.pth'\n[data]\nroot = '../cells'")
    assert recipe.data.root == str(tmp_path / "../cells")
    assert recipe.weights == str(tmp_path / "w.pth")


def test_search_space_file_is_relative_to_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "space.toml").write_text(TINY_SPACE)
    assert load(tmp_path, "[space]\npreset = 'space.toml'").space.load().name == "tiny"


def test_recipe_survives_a_checkpoint(tmp_path: Path) -> None:
    recipe = replace(Recipe(), seed=4, cost_size=(64, 96))
    torch.save(recipe.to_dict(), tmp_path / "r.pt")
    content = torch.load(tmp_path / "r.pt", weights_only=True)
    assert Recipe.from_dict(content) == recipe


PAPER = Recipe.load("paper")


@pytest.mark.parametrize(
    ("changed", "search", "finetune"),
    [
        (replace(PAPER, name="other"), False, False),
        (replace(PAPER, data=replace(PAPER.data, root="/elsewhere", workers=1)), False, False),
        (replace(PAPER, device=replace(PAPER.device, rounds=3)), False, False),
        (replace(PAPER, seed=1), True, True),
        (replace(PAPER, data=replace(PAPER.data, train="val")), True, True),
        (replace(PAPER, detector=replace(PAPER.detector, fpn_width=64)), True, True),
        (replace(PAPER, search=replace(PAPER.search, cost_weight=1)), True, False),
        (replace(PAPER, space=replace(PAPER.space, width_grid=16)), True, False),
        (replace(PAPER, cost_size=None), True, False),
        (replace(PAPER, finetune=replace(PAPER.finetune, lr=1)), False, True),
        (replace(PAPER, finetune=replace(PAPER.finetune, ema=0.9)), False, True),
    ],
)
def test_hashes_change_with_what_their_step_depends_on(
    changed: Recipe, search: bool, finetune: bool
) -> None:
    assert (changed.search_hash != PAPER.search_hash) == search
    assert (changed.finetune_hash != PAPER.finetune_hash) == finetune


def test_costs_refer_to_the_cost_size_or_to_the_rounded_input() -> None:
    paper = Recipe.load("paper")
    assert paper.measured_size() == InputSize(800, 1088)
    assert replace(paper, cost_size=None).measured_size() == InputSize(800, 1344)


def test_width_grid_thins_the_space_to_the_source_and_its_own_multiples(tmp_path: Path) -> None:
    space = load(tmp_path, "[space]\nwidth_grid = 16").space.load()
    assert [block.widths for block in space.blocks[:2]] == [(16, 24, 28), (28, 32, 48)]


def test_benchmark_split_is_the_test_split_if_there_is_one() -> None:
    data = Recipe().data
    assert (data.benchmark, replace(data, test="holdout").benchmark) == ("val", "holdout")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "recipe.toml"
    path.write_text('weights = "~/w.pth"\n[data]\nroot = "~/data"\n[space]\npreset = "~/s.toml"\n')
    recipe = Recipe.load(str(path))
    found = recipe.data.root, recipe.weights, recipe.space.preset
    assert found == tuple(str(tmp_path / "home" / name) for name in ("data", "w.pth", "s.toml"))


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "marked"\n', encoding="utf-8-sig")
    assert Recipe.load(str(path)).name == "marked"


@pytest.mark.parametrize(
    ("device", "compute", "last"),
    [
        ("cpu", {}, True),
        ("cuda", {}, False),  # fp32 depthwise convolutions are slow there
        ("cuda", {"amp": "bf16"}, True),
        ("cuda", {"channels_last": True}, True),
        ("cpu", {"channels_last": False}, False),
    ],
)
def test_feature_maps_lie_channels_last_where_that_is_fast_or_asked_for(
    device: str, compute: dict[str, Any], last: bool
) -> None:
    layout = ComputeRecipe(**compute).memory_format(device)
    assert layout == (torch.channels_last if last else torch.contiguous_format)


def test_a_data_set_that_is_not_there_is_told_with_the_field(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[data]\nroot = "cels"\n')
    named = "does not exist; correct data.root, which is seen from the recipe's file"
    with pytest.raises(AdaptError, match=named):
        Recipe.load(str(recipe)).split("train")
