"""Does TensorRT-RTX build what measures units and detectors? (needs no GPU)"""

import importlib.util
import random
from collections import defaultdict
from dataclasses import replace

import pytest
from core_parts import only_usually, random_architecture

from adapt.cost.detector_space import DetectorSpace
from adapt.cost.units import P6, Boundary, Lateral, MBConvUnit, Stem, rest_unit
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.space import SearchSpace
from bench.latency.onnx_units import detector_model, unit_model
from bench.latency.subject import WholeDetector
from export.engine.build import build_plan
from export.engine.configure import BuildOptions
from export.graph.precision import PRECISIONS

pytestmark = [
    pytest.mark.trt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx"
    ),
]

SPACE = SearchSpace.load("mobilenet_v2")
SMALL = InputSize(64, 96)
DETECTOR = DetectorConfig(
    num_classes=3, fpn_width=8, head_depth=1, candidates=20, score_threshold=0.0
)


def kind(unit):
    """All of an MBConv but its widths."""
    return unit.kernel, unit.expansion, unit.stride, unit.residual, unit.height, unit.width


@pytest.fixture(scope="module")
def mbconvs():
    """Per precision, units of the paper's space at 320x320: two of each kind, of random widths."""
    kinds = defaultdict(list)
    for unit in DetectorSpace(SPACE, DetectorConfig(num_classes=80), InputSize(320, 320)).units():
        if isinstance(unit, MBConvUnit):
            kinds[kind(unit)].append(unit)
    chance = random.Random(0)
    chosen = [unit for units in kinds.values() for unit in chance.sample(units, min(2, len(units)))]
    return {precision: chosen[i :: len(PRECISIONS)] for i, precision in enumerate(PRECISIONS)}


def build(model, name):
    return build_plan(model, name, BuildOptions(flavour="tensorrt_rtx"))


def test_sample_covers_the_space(mbconvs):
    units = {unit for chosen in mbconvs.values() for unit in chosen}
    assert len(units) >= 100
    for chosen in mbconvs.values():
        assert {unit.kernel for unit in chosen} == {3, 5, 7}
        assert {unit.expansion for unit in chosen} >= {3, 6}
        assert {unit.height for unit in chosen} == {160, 80, 40, 20, 10}
        assert {(unit.stride, unit.residual) for unit in chosen} == {
            (1, True),
            (1, False),
            (2, False),
        }


@pytest.mark.parametrize("precision", only_usually("int8", PRECISIONS))
def test_mbconvs_build(precision, mbconvs):
    kind = "half" if precision == "fp16" else "float"
    for unit in mbconvs[precision]:
        built = build(unit_model(unit, precision=precision), repr(unit))
        assert built.inputs == {"input": f"{kind}[1, 4, {unit.height}, {unit.width}]"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "unit",
    [Stem(32, 320, 320), Lateral(40, 256, 40, 40), P6(320, 256, 10, 10), Boundary(24, 80, 80)],
    ids=repr,
)
def test_other_units_build(unit, precision):
    built = build(unit_model(unit, precision=precision), repr(unit))
    (output,) = built.outputs.values()
    assert output.startswith("half" if precision == "fp16" else "float")


# Whole detectors hold the rest in every precision.
@pytest.mark.parametrize("precision", only_usually("int8", PRECISIONS))
@pytest.mark.parametrize("head", ["retinanet", "ssdlite"])
def test_the_rest_of_the_detector_builds(precision, head):
    rest = rest_unit(replace(DETECTOR, head=head), SMALL)
    built = build(unit_model(rest, precision=precision), "rest")
    assert len(built.inputs) == 4
    assert built.outputs["boxes"].startswith("float")


# A backend builds one in fp16, and an export becomes one in fp32, in other files of tests.
@pytest.mark.parametrize("precision", only_usually("int8", PRECISIONS))
def test_whole_detectors_build(precision):
    network = random_architecture(SPACE, seed=0)
    whole = WholeDetector(network, DETECTOR, SMALL)
    built = build(detector_model(whole, precision=precision), "detector")
    assert built.inputs == {"images": "float[1, 3, 64, 96]"}
    assert built.outputs["scores"].startswith("float")


@pytest.mark.parametrize(
    "unit", [MBConvUnit(16, 24, 3, 6, 2, False, 20, 20), rest_unit(DETECTOR, SMALL)]
)
def test_int8_between_fp16_builds(unit):
    built = build(unit_model(unit, precision="int8", rest="fp16"), "unit")
    assert built.layers["int8"] > 0.05
    assert built.layers["fp16"] > 0.05
    assert all(kind.startswith("half") for kind in built.inputs.values())


def test_engines_hold_weights_of_the_asked_precision():
    unit = Lateral(1024, 1024, 10, 10)
    plans = [build(unit_model(unit, precision=p), p).plan for p in ("fp32", "fp16", "int8")]
    fp32, fp16, int8 = (len(plan) / 1024**2 for plan in plans)  # bytes per weight, and the rest
    assert 4 < fp32 < 5
    assert 2 < fp16 < 3
    assert 1 < int8 < 2
