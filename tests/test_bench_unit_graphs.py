import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from adapt.architecture import mobilenet_v2
from adapt.detector import DetectorConfig
from adapt.errors import AdaptError
from adapt.images import InputSize
from adapt.operations import MBConv, stem
from adapt.units import P6, Lateral, MBConvUnit, Rest, Stem, detector_units, halve, rest_unit
from bench.unit_graphs import random_inputs, unit_model
from export.onnx_file import write_onnx
from export.runner import ort_session

DETECTOR = DetectorConfig(num_classes=3, fpn_width=8, head_depth=1, candidates=20)
MBCONVS = [
    MBConvUnit(8, 16, 3, 6, 2, False, 15, 20),
    MBConvUnit(8, 8, 5, 3, 1, True, 15, 20),
    MBConvUnit(8, 8, 7, 6, 1, False, 15, 20),
    MBConvUnit(8, 4, 3, 1, 1, False, 15, 20),
]
CONVS = [Stem(8, 33, 64), Lateral(8, 16, 15, 20), P6(8, 16, 15, 20)]


def torch_module(unit):
    """Return the unit as the detector builds it, in evaluation mode."""
    match unit:
        case Stem():
            return stem(unit.c_out).eval()
        case MBConvUnit():
            return MBConv(unit.shape).eval()
        case Lateral():
            return torch.nn.Conv2d(unit.c_in, unit.c_out, 1)
        case P6():
            return torch.nn.Conv2d(unit.c_in, unit.c_out, 3, stride=2, padding=1)


def convolutions(graph):
    """Return (weight, bias) of every convolution of a graph, in order."""
    values = {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}
    return [
        tuple(torch.from_numpy(values[name].copy()) for name in node.input[1:3])
        for node in graph.node
        if node.op_type == "Conv"
    ]


@torch.no_grad()
def with_weights(module, weights):
    """Give a module folded weights: the bias goes to the BatchNorm, which else changes nothing."""
    convs = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eps = 0.0
    for conv, biased, (weight, bias) in zip(convs, norms or convs, weights, strict=True):
        conv.weight.copy_(weight)
        biased.bias.copy_(bias)
    return module


@pytest.mark.parametrize("unit", [*MBCONVS, *CONVS], ids=repr)
def test_a_unit_computes_what_its_module_computes(unit):
    model = unit_model(unit)
    module = with_weights(torch_module(unit), convolutions(onnx.load_from_string(model).graph))
    inputs = random_inputs(model)
    (found,) = ort_session("ort-cpu", model, 1).run(None, inputs)
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs["input"])).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", MBCONVS[:2], ids=repr)
def test_a_unit_has_the_nodes_of_the_exporter(unit, tmp_path):
    model = onnx.load_from_string(unit_model(unit))
    module = with_weights(torch_module(unit), convolutions(model.graph))
    example = torch.zeros(1, unit.c_in, unit.height, unit.width)
    path = write_onnx(module, [example], (["input"], ["output"]), {}, tmp_path / "unit.onnx")
    exported = onnx.load(path)

    def nodes(graph):
        return [
            (
                node.op_type,
                len(node.input),
                sorted(
                    (a.name, onnx.helper.get_attribute_value(a))
                    for a in node.attribute
                    if a.name != "auto_pad"  # the exporter spells out the default
                ),
            )
            for node in graph.node
        ]

    assert nodes(model.graph) == nodes(exported.graph)
    assert model.opset_import[0].version == exported.opset_import[0].version


@pytest.mark.parametrize("unit", [*MBCONVS, *CONVS], ids=repr)
def test_a_unit_is_valid_onnx_of_its_stated_shape(unit):
    model = onnx.load_from_string(unit_model(unit))
    onnx.checker.check_model(model, full_check=True)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    strided = isinstance(unit, Stem | P6) or getattr(unit, "stride", 1) == 2
    size = [halve(unit.height), halve(unit.width)] if strided else [unit.height, unit.width]
    assert shape == [1, unit.c_out, *size]


def test_the_rest_takes_what_laterals_and_p6_give():
    size = InputSize(64, 96)
    units = list(detector_units(mobilenet_v2(), DETECTOR, size))
    before = [unit for unit in units if isinstance(unit, Lateral | P6)]
    model = unit_model(rest_unit(DETECTOR, size))
    inputs = random_inputs(model)
    outputs = [onnx.load_from_string(unit_model(unit)).graph.output[0] for unit in before]
    shapes = [tuple(d.dim_value for d in o.type.tensor_type.shape.dim) for o in outputs]
    assert [value.shape for value in inputs.values()] == shapes
    number, boxes, _, _ = ort_session("ort-cpu", model, 1).run(None, inputs)
    assert number.shape == (1, 1)
    assert boxes.shape[2] == 4


def test_the_rest_needs_a_letterbox():
    fields = {**DETECTOR.to_dict(), "height": 60, "width": 96}
    with pytest.raises(AdaptError, match="multiple of 32"):
        unit_model(Rest(**fields))


def test_the_same_seed_gives_the_same_bytes():
    unit = MBCONVS[0]
    assert unit_model(unit, seed=1) == unit_model(unit, seed=1) != unit_model(unit, seed=2)
