"""A recipe around a source of bottlenecks becomes a benchmarked detector."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import recipe_of
from core_parts import tiny
from mapping_parts import trained
from test_bench_pipeline_run import SHORT

from adapt.architecture import Architecture, Block
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.table import CostTable
from adapt.cost.units import BottleneckUnit, parse_key
from adapt.data.coco import CocoSplit
from adapt.detector.file import load_detector
from adapt.network.operations import Bottleneck
from adapt.network.weights import PUBLISHED
from adapt.progress import silent_stage
from adapt.sources import SOURCES
from adapt.space import SearchSpace
from bench.costs.report import write_heat_map
from bench.pipeline.run import Run
from search.recipe.recipe import DataRecipe, Recipe
from search.train.session import Session

SPACE = tiny("resnet50")


def small_source() -> Architecture:
    """The widest network of the space, of its first candidates."""
    blocks = tuple(
        Block(block.stride, block.widths[-1], (block.candidates(0)[-1],) * block.num_ops)
        for block in SPACE.blocks
    )
    return Architecture("resnet50", SPACE.stem_width, SPACE.first_width, SPACE.taps, blocks)


@pytest.fixture
def recipe(tiny_data: CocoSplit, tmp_path: Path) -> Iterator[Recipe]:
    """A run from pretrained parameters of a small source in the place of ResNet-50."""
    space, weights = tmp_path / "space.toml", tmp_path / "weights.pth"
    space.write_text(as_toml(SPACE))
    torch.save(trained(small_source(), seed=0).float().state_dict(), weights)
    data = DataRecipe(root=str(tiny_data.annotations.parents[1]), workers=0)
    made = replace(recipe_of(space), init="imagenet", weights=str(weights), data=data)
    made = replace(made, device=replace(made.device, rounds=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "resnet50", small_source)
        patch.setitem(PUBLISHED, "resnet50", replace(PUBLISHED["resnet50"], convert=dict))
        patch.setattr("bench.costs.profiler.CPU_PROTOCOL", SHORT)
        patch.setattr("bench.costs.certify.WHOLE_PROTOCOL", SHORT)
        patch.setattr("adapt.cost.resolution.TOLERATED", 1.0)
        patch.setattr("bench.costs.certify.DETECTORS", 4)
        patch.setattr("bench.pipeline.run.DETECTOR_PROTOCOL", SHORT)
        changes = {"finetune": {"mapping": "refit", "epochs": 1, "shared_epochs": 1}}
        yield made.changed(changes, "the test")


def as_toml(space: SearchSpace) -> str:
    lines = [
        f'name = "{space.name}"\nsource = "{space.source}"\nstem_width = {space.stem_width}',
        f"first_width = {space.first_width}\ntaps = {list(space.taps)}",
    ]
    for block in space.blocks:
        lines += ["[[blocks]]", f"num_ops = {block.num_ops}\nstride = {block.stride}"]
        lines += [f"kernels = {list(block.kernels)}\nexpansions = {list(block.expansions)}"]
        lines += [f"width_list = {list(block.widths)}"]
    return "\n".join(lines)


@pytest.mark.parametrize("choice", [pytest.param("probability", marks=pytest.mark.slow), "scores"])
def test_bottlenecks_are_profiled_chosen_derived_mapped_deployed_and_benchmarked(
    recipe: Recipe, choice: str, tmp_path: Path
) -> None:
    recipe = recipe.with_search(cost="latency", target="1000ms", choice=choice)
    assert recipe.space.load() == SPACE
    out = tmp_path / "run"
    result = Run(recipe, out, Session(limit_steps=1), silent_stage, None, None, 1).execute()
    assert result.bench is not None
    assert [entry.name for entry in result.bench.entries] == ["derived", "source"]
    with CostTable.open(out / "costs.sqlite") as table:
        assert table.certificate is not None
        write_heat_map(table, out / "costs.png")
        units = {unit for unit in map(parse_key, table.rows()) if isinstance(unit, BottleneckUnit)}
    detectors = recipe.detectors(3)
    assert isinstance(detectors, DetectorSpace)
    wanted = {unit for unit in detectors.units() if isinstance(unit, BottleneckUnit)}
    assert len(wanted) > 40
    assert units >= wanted
    model, info = load_detector(out / "derived.safetensors")
    info.architecture.check_fits(SPACE)
    assert any(isinstance(module, Bottleneck) for module in model.backbone.body.modules())
    assert result.deployed.keys() == {"derived", "source"}
