import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from core_parts import random_architecture, shake, tiny
from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2

from adapt.architecture import Architecture, Block, Choices, MBConvShape
from adapt.errors import AdaptError
from adapt.network.backbone import Backbone
from adapt.sources import (
    SOURCES,
    mobilenet_v2,
    mobilenet_v3_large,
    source_named,
    source_of,
    with_source_widths,
)
from adapt.space import Operation, SearchSpace

K3, K5 = Operation(3, 2), Operation(5, 3)
SMALL = Architecture("mobilenet_v2", 8, 4, (1, 2), (Block(2, 6, (K3, K5)), Block(1, 6, (K5,))))


@pytest.mark.parametrize("seed", range(5))
def test_file_round_trip_keeps_the_network(tmp_path: Path, seed: int) -> None:
    architecture = random_architecture(SearchSpace.load("mobilenet_v2"), seed)
    architecture.save(tmp_path / "a.json", recipe="r1")
    loaded = Architecture.load(tmp_path / "a.json")
    assert (loaded, loaded.hash) == (architecture, architecture.hash)


def test_file_tells_where_it_comes_from(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "a.json", recipe="r1")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["recipe"] == "r1"
    assert content["made_with"]["torch"] == torch.__version__.split("+")[0]


def test_shapes_follow_the_widths_and_only_later_operations_are_residual() -> None:
    assert SMALL.layers() == [
        [MBConvShape(4, 6, 3, 2, 2, False), MBConvShape(6, 6, 5, 3, 1, True)],
        [MBConvShape(6, 6, 5, 3, 1, False)],
    ]


@pytest.mark.parametrize(
    ("c_in", "expansion", "hidden", "squeezed"),
    [
        (16, 6, 96, 24),
        (24, 3, 72, 24),  # a quarter is 18; 16 would be less than 0.9 of it
        (40, 3, 120, 32),
        (80, 2.5, 200, 48),
        (80, 2.3, 184, 48),
        (72, 2.3, 168, 40),
        (2, 2.3, 8, 8),
        (160, 6, 960, 240),
    ],
)
def test_hidden_and_squeezed_channels(
    c_in: int, expansion: float, hidden: int, squeezed: int
) -> None:
    shape = MBConvShape(c_in, 8, 3, expansion, 1, False, se=True)
    assert (shape.hidden, shape.squeezed) == (hidden, squeezed)


@pytest.mark.parametrize("expansion", [1, 2.3, 2.5, 3])
def test_a_wider_input_never_has_fewer_channels_inside(expansion: float) -> None:
    shapes = [MBConvShape(c_in, 8, 3, expansion, 1, False) for c_in in range(1, 200)]
    for narrow, wide in pairwise(shapes):
        assert narrow.hidden <= wide.hidden
        assert narrow.squeezed <= wide.squeezed


def test_shapes_of_mobilenet_v3_are_those_of_its_table() -> None:
    *_, third, fourth, _ = mobilenet_v3_large().layers()
    assert [shape.hidden for shape in third] == [240, 200, 184, 184]
    assert [shape.se for shape in fourth] == [True, True]
    activations = [block[0].activation for block in mobilenet_v3_large().layers()]
    assert activations == ["relu", "relu", "hardswish", "hardswish", "hardswish"]
    assert str(mobilenet_v3_large().blocks[2].ops[1]) == "k3_e2.5"
    assert Architecture.from_dict(mobilenet_v3_large().to_dict()) == mobilenet_v3_large()


@pytest.mark.parametrize("seed", range(20))
def test_network_fits_the_space_it_comes_from(seed: int) -> None:
    space = SearchSpace.load("mobilenet_v2")
    random_architecture(space, seed).check_fits(space)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_in_the_space_around_it(name: str) -> None:
    space = with_source_widths(SearchSpace.load(name))
    source = source_named(name)
    assert space.source == source.source == name
    assert source_of(space) == source
    found = Choices.found(source, space)
    assert found is not None
    assert found.architecture(space) == source


def changed(block: int, **fields: Any) -> Callable[[Architecture], Architecture]:
    def change(a: Architecture) -> Architecture:
        blocks = list(a.blocks)
        blocks[block] = replace(blocks[block], **fields)
        return replace(a, blocks=tuple(blocks))

    return change


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda a: replace(a, source="resnet"), "its source differs"),
        (lambda a: replace(a, stem_width=16), "its stem_width differs"),
        (lambda a: replace(a, taps=(1, 2, 3)), "its taps differs"),
        (lambda a: replace(a, blocks=a.blocks[:-1]), "its number of blocks differs"),
        (changed(0, stride=1), "block 1 has stride 1, not 2"),
        (changed(1, width=29), "block 2 has width 29, which is no candidate"),
        (changed(5, ops=(Operation(3, 6),) * 2), "block 6 has 2 operations, more than 1"),
        (changed(2, ops=(Operation(3, 4),)), "block 3 has operation k3_e4, which is no candidate"),
    ],
)
def test_network_of_another_space_is_refused(
    change: Callable[[Architecture], Architecture], fragment: str
) -> None:
    space = SearchSpace.load("mobilenet_v2")
    other = change(random_architecture(space, 0))
    with pytest.raises(AdaptError) as caught:
        other.check_fits(space, Path("a.json"))
    assert fragment in str(caught.value)
    assert "a.json" in str(caught.value)


def content_with(**fields: Any) -> dict[str, Any]:
    network = {**SMALL.to_dict(), **fields}
    return {"format": "adapt-architecture", "version": 1, "architecture": network}


def blocks_with(**fields: Any) -> dict[str, Any]:
    return content_with(blocks=[{**SMALL.to_dict()["blocks"][0], **fields}] * 2)


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ([], "not an adapt architecture file"),
        ({"format": "adapt-detector", "version": 1}, "its format is 'adapt-detector'"),
        ({**content_with(), "version": 2}, "version 2"),
        ({"format": "adapt-architecture", "version": 1}, "architecture is missing"),
        (content_with(blocks=[{"stride": 2, "ops": ["k3_e6"]}]), "width is missing"),
        (content_with(blocks=3), "is not valid"),
        (content_with(taps=[1, 9]), "taps"),
        (content_with(stem_width="wide"), "stem_width"),
        (blocks_with(ops=[]), "every block needs at least one operation"),
        (blocks_with(ops=["k3_e6", "skip"]), "lists no 'skip'"),
        (blocks_with(ops=["k3"]), "operation 'k3'"),
        (blocks_with(ops=[3]), "is not valid"),
        (blocks_with(width="24"), "width"),
    ],
)
def test_malformed_file_is_refused(tmp_path: Path, content: Any, fragment: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AdaptError) as caught:
        Architecture.load(path)
    assert fragment in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fragment"), [(None, "does not exist"), ('{"format": "adapt', "is not JSON")]
)
def test_missing_or_truncated_file_is_refused(
    tmp_path: Path, text: str | None, fragment: str
) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(AdaptError, match=fragment):
        Architecture.load(tmp_path / "a.json")


def test_mobilenet_v2_is_torchvisions_to_the_last_bottleneck() -> None:
    reference = torchvision_mobilenet_v2(weights=None).features[:18].eval()
    shake(reference, seed=0)
    backbone = Backbone(mobilenet_v2()).eval()
    ours, theirs = backbone.features.state_dict(), reference.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    backbone.features.load_state_dict(theirs)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(backbone(image)["2"], reference(image))


def test_backbone_returns_the_tapped_blocks() -> None:
    image = torch.rand(1, 3, 64, 96)
    taps = Backbone(mobilenet_v2()).eval()(image)
    shapes = {name: tuple(tap.shape[1:]) for name, tap in taps.items()}
    assert shapes == {"0": (32, 8, 12), "1": (96, 4, 6), "2": (320, 2, 3)}


TABLE_ONE = SearchSpace.load("mobilenet_v2")


def with_widths(*widths: int) -> SearchSpace:
    """Table I, with other widths in its first block, whose source has 24."""
    first, *others = TABLE_ONE.blocks
    return replace(TABLE_ONE, blocks=(replace(first, widths=widths), *others))


@pytest.mark.parametrize("grid", [1, 16, 32, 48, 1000])
def test_on_any_grid_the_source_is_a_network_of_its_space(grid: int) -> None:
    space = with_source_widths(TABLE_ONE.on_grid(grid))
    mobilenet_v2().check_fits(space)
    for thinned, block in zip(TABLE_ONE.on_grid(grid).blocks, space.blocks, strict=True):
        assert len({*block.widths} - {*thinned.widths}) <= 1


@pytest.mark.parametrize(
    ("widths", "candidates"),
    [
        ((16, 28), (16, 24, 28)),
        ((16, 22, 28), (16, 22, 24, 28)),
        ((16, 24), (16, 24)),
        ((24,), (24,)),
        ((8, 16), (8, 16)),  # narrower than the source, as its author wanted
        ((26, 32), (26, 32)),
    ],
)
def test_source_width_within_a_range_is_a_candidate(
    widths: tuple[int, ...], candidates: tuple[int, ...]
) -> None:
    assert with_source_widths(with_widths(*widths)).blocks[0].widths == candidates


@pytest.mark.parametrize(
    "space",
    [
        tiny(),
        replace(TABLE_ONE, source="other"),
        replace(TABLE_ONE, stem_width=16),
        replace(TABLE_ONE, blocks=(*TABLE_ONE.blocks, replace(TABLE_ONE.blocks[-1], num_ops=2))),
    ],
)
def test_space_that_its_source_cannot_be_mapped_onto_keeps_its_widths(space: SearchSpace) -> None:
    assert source_of(space) is None
    assert with_source_widths(space.on_grid(1000)) == space.on_grid(1000)
