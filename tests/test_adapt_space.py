import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from core_parts import TINY_SPACE

from adapt.architecture import Choices
from adapt.cost.detector_space import DetectorSpace
from adapt.cost.units import MBConvUnit, Unit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.errors import AdaptError
from adapt.sources import SOURCES, mobilenet_v2
from adapt.space import SKIP, Operation, SearchSpace

TABLE_ONE = SearchSpace.load("mobilenet_v2")


def test_preset_has_the_blocks_of_table_one() -> None:
    assert [b.num_ops for b in TABLE_ONE.blocks] == [4, 4, 4, 4, 4, 1]
    assert [b.stride for b in TABLE_ONE.blocks] == [2, 2, 2, 1, 2, 1]
    assert [len(b.widths) for b in TABLE_ONE.blocks] == [7, 11, 13, 15, 33, 37]
    ends = [(b.widths[0], b.widths[-1]) for b in TABLE_ONE.blocks]
    assert ends == [(16, 28), (28, 48), (48, 72), (72, 128), (128, 256), (256, 400)]


TABLE_THREE = (  # candidates of the individual blocks; their strides are not in the paper
    ((24, 32, 64), 2),
    ((32, 64, 96), 2),
    ((64, 96, 160), 2),
    ((96, 160, 320), 1),
    ((160, 320, 480), 2),
    ((320, 480), 1),
    ((320, 480, 640), 1),
)


def test_candidates_of_table_three_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "individual.toml"
    fixed = 'name = "i"\nsource = "mobilenet_v2"\nstem_width = 32\nfirst_width = 16\n'
    path.write_text(fixed + "taps = [2, 4, 7]\n" + "".join(map(individual, TABLE_THREE)))
    space = SearchSpace.load(str(path))
    assert [block.widths for block in space.blocks] == [widths for widths, _ in TABLE_THREE]
    assert math.prod(len(block.widths) for block in space.blocks) == 3**6 * 2
    assert max(len(block.widths) for block in space.blocks) == 3  # as the table counts them


def individual(row: tuple[tuple[int, ...], int]) -> str:
    widths, stride = row
    rest = f"num_ops = 4\nstride = {stride}\nkernels = [3, 5, 7]\nexpansions = [3, 6]\n"
    return f"[[blocks]]\nwidth_list = {list(widths)}\n{rest}"


@pytest.mark.parametrize(
    ("widths", "candidates"),
    [
        ("widths = [4, 8, 4]", (4, 8)),
        ("widths = [4, 4, 4]", (4,)),
        ("widths = [4, 8, 1]", (4, 5, 6, 7, 8)),
        ("width_list = [4, 5, 8]", (4, 5, 8)),
    ],
)
def test_widths_are_a_range_or_a_list(
    tmp_path: Path, widths: str, candidates: tuple[int, ...]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TINY_SPACE.replace("widths = [4, 8, 4]", widths))
    assert SearchSpace.load(str(path)).blocks[0].widths == candidates


def test_only_the_first_operation_of_a_block_cannot_be_skipped() -> None:
    for block in TABLE_ONE.blocks:
        assert len(block.candidates(0)) == 6
        assert block.candidates(1) == (*block.candidates(0), SKIP)


def test_preset_has_as_many_encodings_as_the_design_says() -> None:
    encodings = math.prod(6 * 7 ** (b.num_ops - 1) * len(b.widths) for b in TABLE_ONE.blocks)
    assert encodings == pytest.approx(4.06e24, rel=1e-3)


def test_preset_has_13284_distinct_mbconvs() -> None:
    asked: list[Unit] = []

    def record(unit: Unit) -> float:
        asked.append(unit)
        return 0.0

    DetectorSpace(TABLE_ONE, DetectorConfig(80), InputSize(800, 1088)).costs(record)
    convs = [u for u in asked if isinstance(u, MBConvUnit) and u.expansion != 1]
    assert len({replace(unit, residual=False) for unit in convs}) == 13_284


@pytest.mark.parametrize("grid", [1, 2, 8, 16, 1000])
def test_grid_keeps_multiples_and_both_ends(grid: int) -> None:
    for before, after in zip(TABLE_ONE.blocks, TABLE_ONE.on_grid(grid).blocks, strict=True):
        ends = {before.widths[0], before.widths[-1]}
        assert set(after.widths) == ends | {w for w in before.widths if w % grid == 0}


def test_slim_space_holds_the_source_and_networks_below_the_papers() -> None:
    slim = SearchSpace.load("mobilenet_v2_slim")
    assert Choices.found(mobilenet_v2(), slim)
    for block, papers in zip(slim.blocks, SearchSpace.load("mobilenet_v2").blocks, strict=True):
        assert min(block.widths) <= min(papers.widths)
        assert min(block.expansions) < min(papers.expansions)


def test_grid_below_one_is_refused() -> None:
    with pytest.raises(AdaptError, match="at least 1, got 0"):
        TABLE_ONE.on_grid(0)


def test_input_widths_are_the_previous_blocks_widths() -> None:
    assert TABLE_ONE.in_widths(0) == (16,)
    assert TABLE_ONE.in_widths(3) == TABLE_ONE.blocks[2].widths


@pytest.mark.parametrize(
    "change",
    [
        {"source": "other"},
        {"stem_width": 16},
        {"first_width": 24},
        {"taps": (2, 4)},
        {"blocks": (*TABLE_ONE.blocks[:-1], replace(TABLE_ONE.blocks[-1], stride=2))},
        {"blocks": (*TABLE_ONE.blocks[:-1], replace(TABLE_ONE.blocks[-1], num_ops=2))},
        {"blocks": (*TABLE_ONE.blocks[:-1], replace(TABLE_ONE.blocks[-1], kernels=(3,)))},
        {"blocks": (*TABLE_ONE.blocks[:-1], replace(TABLE_ONE.blocks[-1], expansions=(6,)))},
        {"blocks": (*TABLE_ONE.blocks[:-1], replace(TABLE_ONE.blocks[-1], squeeze=(True,)))},
        {"blocks": TABLE_ONE.on_grid(16).blocks},
    ],
)
def test_hash_changes_with_a_choice(change: dict[str, Any]) -> None:
    assert replace(TABLE_ONE, **change).hash != TABLE_ONE.hash


def test_hash_does_not_change_with_the_name() -> None:
    assert replace(TABLE_ONE, name="mine").hash == TABLE_ONE.hash


def test_hash_of_the_papers_space_is_frozen() -> None:
    assert TABLE_ONE.hash == "0dbaf31aa543677d"


@pytest.mark.parametrize("name", SOURCES)
def test_a_space_is_restored_from_what_was_stored(name: str) -> None:
    space = SearchSpace.load(name)
    restored = SearchSpace.restore(json.loads(json.dumps(space.to_dict())))
    assert (restored, restored.hash) == (space, space.hash)


@pytest.mark.parametrize(
    ("before", "after", "fragment"),
    [
        ('name = "tiny"', "", "name is missing"),
        ("stride = 2", "", "stride is missing"),
        ("stride = 2", "stride = 3", "block 1: stride must be 1 or 2, got 3"),
        ("num_ops = 2", "num_ops = 0", "block 1: num_ops must be at least 1, got 0"),
        ("kernels = [3]", "kernels = [4]", "block 1: kernels must be odd sizes, got [4]"),
        ("kernels = [3]", "kernels = []", "block 1: kernels must be odd sizes, got []"),
        ("expansions = [2]", "expansions = [0]", "block 1: expansions must be at least 1, got [0]"),
        (
            "expansions = [2]",
            "expansions = [2.0625]",
            "expansions have at most three decimals, got",
        ),
        ("expansions = [2]", "expansions = [inf]", "is not valid"),
        ("expansions = [2]", "expansions = [2]\nsqueeze = []", "block 1: squeeze must be [false]"),
        ("expansions = [2]", "expansions = [2]\nsqueeze = [true, true]", "[true] or both, got"),
        ("widths = [4, 8, 4]", "widths = [4, 8, 0]", "step of widths must be positive, got 0"),
        ("widths = [4, 8, 4]", "widths = [8, 4, 4]", "block 1: widths = [8, 4, 4] is no range"),
        ("widths = [4, 8, 4]", "widths = [24, 32, 64]", "or list the candidates: width_list = ["),
        ("widths = [4, 8, 4]", "widths = [4, 9, 2]", "with whole steps from one to the other"),
        ("widths = [4, 8, 4]", "widths = [4, 8]", "widths = [minimum, maximum, step]"),
        ("widths = [4, 8, 4]", "widths = [4, 6, 8, 9]", "width_list = [4, 6, 8, 9]"),
        ("widths = [4, 8, 4]", "widths = 8", "widths must be a list of whole numbers, got 8"),
        ("widths = [4, 8, 4]", "widths = [4.0, 8, 4]", "whole numbers, got [4.0, 8, 4]"),
        ("widths = [4, 8, 4]", "", "block 1: name its candidates once"),
        ("stride = 2", "stride = 2\nwidth_list = [4]", "as widths or as width_list"),
        ("widths = [4, 8, 4]", "width_list = [8, 4]", "block 1: widths must be positive and incr"),
        ("widths = [4, 8, 4]", "width_list = []", "block 1: widths must be positive and incr"),
        ("widths = [4, 8, 4]", "widths = [0, 8, 4]", "block 1: widths must be positive"),
        ("taps = [2, 3, 4]", "taps = [2, 3, 5]", "strides 8, 16 and 32, got [2, 3, 5]"),
        ("taps = [2, 3, 4]", "taps = [3, 2, 4]", "which are at [16, 8, 32]"),
        ("taps = [2, 3, 4]", "taps = []", "taps"),
        ("stem_width = 8", "stem_width = 0", "stem_width"),
        ("[[blocks]]", "[[blocks", "is not valid"),
    ],
)
def test_bad_space_file_is_refused(tmp_path: Path, before: str, after: str, fragment: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TINY_SPACE.replace(before, after, 1))
    with pytest.raises(AdaptError) as caught:
        SearchSpace.load(str(path))
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fragment"),
    [
        (
            "mobilenet_v9",
            "use a preset (efficientnet_lite0, mnasnet1_0, mobilenet_v2, mobilenet_v2_slim, "
            "mobilenet_v3_large, resnet50)",
        ),
        ("none.toml", "none.toml does not exist"),
    ],
)
def test_space_that_does_not_exist_is_refused(name: str, fragment: str) -> None:
    with pytest.raises(AdaptError) as caught:
        SearchSpace.load(name)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "operation",
    [
        SKIP,
        Operation(3, 6),
        Operation(11, 12),
        Operation(3, 2.3),
        Operation(3, 0.125),
        Operation(5, 2.25, se=True),
    ],
)
def test_operation_is_read_as_it_is_written(operation: Operation) -> None:
    assert Operation.parse(str(operation)) == operation


@pytest.mark.parametrize("text", ["", "k3", "e6_k3", "k3_e", "k3_eX", "k3_e6_s2", "Skip", "k0_e0"])
def test_malformed_operation_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(AdaptError, match=f"operation '{text}'"):
        Operation.parse(text)
