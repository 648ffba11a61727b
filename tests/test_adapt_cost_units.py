from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from core_parts import mostly_slow, random_architecture
from published import TABLE_TWO, row_architecture, table_two
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import RetinaNet

from adapt.architecture import Architecture, MBConvShape
from adapt.cost.units import (
    P6,
    BottleneckUnit,
    Boundary,
    Lateral,
    MBConvUnit,
    Rest,
    Stem,
    boundaries,
    detector_units,
    madds,
    parse_key,
    pyramid_sizes,
    rest_unit,
    unit_key,
)
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig, HeadKind
from adapt.detector.retinanet import build_detector, count_parameters
from adapt.network.backbone import Backbone
from adapt.sources import SOURCES, mobilenet_v2, source_named
from adapt.space import SearchSpace

PAPER_SIZE = InputSize(800, 1088)
HEADS = get_args(HeadKind)
TABLE_ONE = SearchSpace.load("mobilenet_v2")


def on_meta(architecture: Architecture, config: DetectorConfig) -> RetinaNet:
    with torch.device("meta"):
        return build_detector(Backbone(architecture), config).eval()


def counted_madds(model: RetinaNet, height: int, width: int) -> int:
    """Count with PyTorch's counter, which leaves biases out, and add those by hand."""
    biases = 0

    def add(conv: nn.Module, inputs: Any, out: torch.Tensor) -> None:
        nonlocal biases
        biases += out.numel() if conv.bias is not None else 0

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with FlopCounterMode(display=False) as counter:
        features = model.backbone(torch.empty(1, 3, height, width, device="meta"))
        model.head(list(features.values()))
    return counter.get_total_flops() // 2 + biases


def unit_madds(architecture: Architecture, config: DetectorConfig, size: InputSize) -> float:
    return sum(madds(unit) for unit in detector_units(architecture, config, size))


def test_retinanet_mobilenet_v2_has_the_params_and_madds_of_table_two() -> None:
    config = DetectorConfig(80)
    assert count_parameters(on_meta(mobilenet_v2(), config)) == 11_488_244
    assert unit_madds(mobilenet_v2(), config, PAPER_SIZE) == 133_053_449_976


@pytest.mark.parametrize("seed", mostly_slow(50, usual=8))
def test_units_agree_with_pytorchs_counter(seed: int) -> None:
    architecture = random_architecture(TABLE_ONE, seed)
    config = DetectorConfig(
        1 + seed % 5,
        fpn_width=16 + seed,
        head_depth=seed % 4,
        anchor_scales=3 - seed % 3,
        head=HEADS[seed // 2 % 3],
        finest_level=3 + seed // 2 % 3,
        separable=seed % 4 == 0 and HEADS[seed // 2 % 3] != "ssdlite",
    )
    size = InputSize(64, 96) if seed % 2 else InputSize(72, 104, "shortest-edge")
    counted = counted_madds(on_meta(architecture, config), size.height, size.width)
    assert unit_madds(architecture, config, size) == counted


@pytest.mark.parametrize("source", SOURCES)
def test_units_of_sources_and_around_them_agree_with_pytorchs_counter(source: str) -> None:
    config, size = DetectorConfig(3, fpn_width=16, head_depth=1), InputSize(64, 96)
    space = SearchSpace.load(source)
    for architecture in (source_named(source), random_architecture(space, seed=0)):
        counted = counted_madds(on_meta(architecture, config), size.height, size.width)
        assert unit_madds(architecture, config, size) == counted


def test_what_a_source_does_otherwise_than_mobilenet_v2_is_measured_by_itself() -> None:
    config, size = DetectorConfig(3), InputSize(64, 96)
    twin = replace(mobilenet_v2(), source="mnasnet1_0")
    pairs = zip(
        detector_units(mobilenet_v2(), config, size),
        detector_units(twin, config, size),
        strict=True,
    )
    for unit, other in pairs:
        activated = isinstance(unit, Stem | MBConvUnit)
        assert ("activation=relu " in f"{unit_key(other)} ") == activated
        assert (unit_key(unit) == unit_key(other)) != activated
        assert parse_key(unit_key(other)) == other


def conv(kernel: int, c_in: int, c_out: int, cells: int, bias: int = 0) -> int:
    return (kernel * kernel * c_in + bias) * c_out * cells


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (Stem(32, 63, 96), conv(3, 3, 32, 32 * 48)),
        (MBConvUnit(4, 6, 5, 1, 1, False, 3, 5), conv(5, 1, 4, 15) + conv(1, 4, 6, 15)),
        (
            MBConvUnit(4, 6, 5, 2, 2, False, 3, 5),
            conv(1, 4, 8, 15) + conv(5, 1, 8, 6) + conv(1, 8, 6, 6),
        ),
        (
            MBConvUnit(16, 6, 3, 2.3, 1, False, 3, 5, se=True),  # 40 hidden channels, 16 squeezed
            conv(1, 16, 40, 15)
            + conv(3, 1, 40, 15)
            + conv(1, 40, 16, 1, bias=1)
            + conv(1, 16, 40, 1, bias=1)
            + conv(1, 40, 6, 15),
        ),
        (Stem(8, 63, 96, kernel=7, pooled=True), conv(7, 3, 8, 32 * 48)),
        (
            BottleneckUnit(4, 64, 5, 0.25, 2, False, 3, 5),  # 16 hidden channels
            conv(1, 4, 16, 15) + conv(5, 16, 16, 6) + conv(1, 16, 64, 6) + conv(1, 4, 64, 6),
        ),
        (
            BottleneckUnit(64, 64, 3, 0.5, 1, True, 3, 5),
            conv(1, 64, 32, 15) + conv(3, 32, 32, 15) + conv(1, 32, 64, 15),
        ),
        (Lateral(7, 16, 3, 5), conv(1, 7, 16, 15, bias=1)),
        (P6(7, 16, 3, 5), conv(3, 7, 16, 6, bias=1)),
    ],
)
def test_madds_follow_the_convention_of_table_two(unit: Any, expected: int) -> None:
    assert madds(unit) == expected


def test_rest_counts_smoothing_p7_towers_and_outputs() -> None:
    cells = [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]  # P3 to P7 of 64 x 96
    rest = rest_unit(DetectorConfig(3, fpn_width=16, head_depth=2), InputSize(64, 96))
    smooth_and_p7 = conv(3, 16, 16, sum(cells[:3]) + cells[4], bias=1)
    towers = 2 * 2 * conv(3, 16, 16, sum(cells), bias=1)
    outputs = conv(3, 16, 9 * (3 + 4), sum(cells), bias=1)
    assert madds(rest) == smooth_and_p7 + towers + outputs


def test_rest_of_ssdlite_counts_p7_separable_towers_and_outputs() -> None:
    cells = [4 * 6, 2 * 3, 1 * 2, 1 * 1]  # P4 to P7 of 64 x 96
    config = DetectorConfig(3, fpn_width=16, head_depth=2, finest_level=4, head="ssdlite")

    def separable(c_out: int, cells: int, bias: int = 0) -> int:
        return conv(3, 1, 16, cells) + conv(1, 16, c_out, cells, bias=bias)

    towers = 2 * 2 * separable(16, sum(cells))
    outputs = separable(9 * 4, sum(cells), bias=1) + separable(9 * (1 + 3), sum(cells), bias=1)
    rest = rest_unit(config, InputSize(64, 96))
    assert madds(rest) == separable(16, cells[3]) + towers + outputs


def test_key_names_every_field_of_a_unit() -> None:
    unit = MBConvUnit(16, 24, 3, 6, 2, False, 400, 544)
    fields = "c_in=16 c_out=24 kernel=3 expansion=6 stride=2 residual=0 height=400 width=544"
    assert unit_key(unit) == f"mbconv {fields}"


EVERY_KIND = {
    Stem(32, 63, 96): "stem c_out=32 height=63 width=96",
    Stem(16, 64, 96, activation="relu"): "stem c_out=16 height=64 width=96 activation=relu",
    MBConvUnit(16, 24, 3, 6, 2, False, 40, 54, activation="relu"): (
        "mbconv c_in=16 c_out=24 kernel=3 expansion=6 stride=2 residual=0 activation=relu "
        "height=40 width=54"
    ),
    MBConvUnit(80, 80, 3, 2.5, 1, True, 20, 27, activation="hardswish", se=True): (
        "mbconv c_in=80 c_out=80 kernel=3 expansion=2.5 stride=1 residual=1 activation=hardswish "
        "se=1 height=20 width=27"
    ),
    Stem(16, 64, 96, activation="relu", kernel=7, pooled=True): (
        "stem c_out=16 height=64 width=96 activation=relu kernel=7 pooled=1"
    ),
    BottleneckUnit(256, 512, 3, 0.125, 2, False, 40, 54): (
        "bottleneck c_in=256 c_out=512 kernel=3 expansion=0.125 stride=2 residual=0 height=40 "
        "width=54"
    ),
    Lateral(96, 64, 4, 6): "lateral c_in=96 c_out=64 height=4 width=6",
    P6(320, 64, 2, 3): "p6 c_in=320 c_out=64 height=2 width=3",
    Boundary(24, 16, 24): "boundary channels=24 height=16 width=24",
    rest_unit(DetectorConfig(3, fpn_width=64), InputSize(64, 96)): (
        "rest fpn_width=64 head_depth=4 num_classes=3 anchor_size=32 score_threshold=0.05 "
        "nms_threshold=0.5 candidates=1000 nms_candidates=1000 detections=100 height=64 width=96"
    ),
    rest_unit(DetectorConfig(3, head_depth=0, anchor_scales=1), InputSize(64, 96)): (
        "rest fpn_width=256 head_depth=0 num_classes=3 anchor_size=32 score_threshold=0.05 "
        "nms_threshold=0.5 candidates=1000 nms_candidates=1000 detections=100 height=64 width=96 "
        "anchor_scales=1"
    ),
    rest_unit(DetectorConfig(3, head_depth=0, finest_level=4), InputSize(64, 96)): (
        "rest fpn_width=256 head_depth=0 num_classes=3 anchor_size=32 score_threshold=0.05 "
        "nms_threshold=0.5 candidates=1000 nms_candidates=1000 detections=100 height=64 width=96 "
        "finest_level=4"
    ),
}


@pytest.mark.parametrize("unit", EVERY_KIND, ids=lambda unit: type(unit).__name__)
def test_keys_are_frozen_and_tell_which_unit_it_is(unit: Any) -> None:
    assert unit_key(unit) == EVERY_KIND[unit]
    assert parse_key(EVERY_KIND[unit]) == unit


def test_a_residual_survives_its_key() -> None:
    unit = MBConvUnit(8, 8, 3, 6, 1, True, 4, 5)
    assert parse_key(unit_key(unit)) == unit


def test_a_unit_is_not_its_shape_alone() -> None:
    assert MBConvUnit(8, 8, 3, 6, 1, True, 4, 5) != MBConvShape(8, 8, 3, 6, 1, True)


def test_a_foreign_key_is_no_unit() -> None:
    with pytest.raises(ValueError, match="no unit has the key 'dense c=1'"):
        parse_key("dense c=1")


@pytest.mark.parametrize("source", ["mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("size", [InputSize(320, 320), InputSize(72, 104, "shortest-edge")])
def test_in_a_detector_every_boundary_has_one_writer(size: InputSize, source: str) -> None:
    """What one unit writes is a boundary that others read; laterals branch off."""
    config = DetectorConfig(3, fpn_width=24)
    backbone, pyramid = [], []
    for unit in detector_units(source_named(source), config, size):
        (pyramid if isinstance(unit, Lateral | P6 | Rest) else backbone).append(unit)
    ends = [boundaries(unit) for unit in backbone]
    assert [e[-1] for e in ends[:-1]] == [e[0] for e in ends[1:]]
    *branches, rest = map(boundaries, pyramid)
    assert all(branch[0] in [e[-1] for e in ends] for branch in branches)
    assert [branch[-1] for branch in branches] == rest
    assert [(e.height, e.width) for e in rest] == pyramid_sizes(size.height, size.width)[:4]


def parts_in_g(architecture: Architecture) -> Iterator[float]:
    """G MAdds of backbone, neck and head of the paper's detector."""
    config = DetectorConfig(80)
    units = list(detector_units(architecture, config, PAPER_SIZE))
    counted = [madds(unit) for unit in units]
    rest = units[-1]
    assert isinstance(rest, Rest)
    levels = [100 * 136, 50 * 68, 25 * 34, 13 * 17, 7 * 9]
    smooth_and_p7 = conv(3, 256, 256, sum(levels[:3]) + levels[4], bias=1)
    yield sum(counted[:-5]) / 1e9
    yield (sum(counted[-5:-1]) + smooth_and_p7) / 1e9
    yield (counted[-1] - smooth_and_p7) / 1e9


@pytest.mark.shared
@pytest.mark.skipif(not TABLE_TWO.is_file(), reason=f"{TABLE_TWO} is absent")
@pytest.mark.parametrize("name", ["MobileNetV2", "FNA"])
def test_components_of_table_two_are_reproduced(name: str) -> None:
    row = table_two()[name]
    architecture, measured = row_architecture(row), row["measured"]
    expected = [measured[f"{part}_madds_B"] for part in ("backbone", "neck", "head")]
    assert list(parts_in_g(architecture)) == pytest.approx(expected, abs=1e-9)
    params = count_parameters(on_meta(architecture, DetectorConfig(80)))
    assert params == round(measured["params_M"] * 1e6)
    assert round(params / 1e6, 2) == row["paper"]["params_M"]
