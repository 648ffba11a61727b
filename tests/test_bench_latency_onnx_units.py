from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from core_parts import random_architecture, tiny
from onnx import numpy_helper
from processor import skip_where_int8_saturates
from torch import nn

from adapt.cost.units import (
    P6,
    BottleneckUnit,
    Boundary,
    Lateral,
    MBConvUnit,
    Rest,
    Stem,
    boundaries,
    rest_unit,
)
from adapt.data.images import InputSize
from adapt.detector.config import DetectorConfig
from adapt.detector.file import DetectorInfo
from adapt.detector.retinanet import build_detector
from adapt.errors import AdaptError
from adapt.network.backbone import IMAGE_MEAN, IMAGE_STD, Backbone
from adapt.network.operations import conv_operation, stem, stem_pooling
from adapt.sources import mobilenet_v2
from bench.latency.onnx_units import detector_model, random_inputs, unit_model
from bench.latency.subject import WholeDetector
from export.graph.detector import export_detector
from export.graph.options import DETECTIONS, GraphOptions, rest_inputs
from export.graph.precision import PRECISIONS
from export.graph.rest import RestOfDetector
from export.run.inference import batch_detections
from export.run.matching import match_detections
from export.run.onnx_session import ort_session

DETECTOR = DetectorConfig(
    num_classes=3,
    fpn_width=8,
    head_depth=1,
    candidates=20,
    score_threshold=0.0,  # a random detector is sure of nothing
)
SIZE = InputSize(64, 96)
WHOLE = WholeDetector(random_architecture(tiny(), seed=0), DETECTOR, SIZE)
REST = rest_unit(DETECTOR, SIZE)
MBCONVS = [
    MBConvUnit(8, 16, 3, 6, 2, False, 15, 20),
    MBConvUnit(8, 8, 5, 3, 1, True, 15, 20),
    MBConvUnit(8, 8, 7, 6, 1, False, 15, 20),
    MBConvUnit(8, 4, 3, 1, 1, False, 15, 20),
    MBConvUnit(8, 8, 5, 3, 1, True, 15, 20, activation="relu"),
    MBConvUnit(8, 8, 3, 2.5, 1, True, 15, 20, activation="hardswish"),
    MBConvUnit(8, 16, 5, 3, 2, False, 15, 20, activation="hardswish", se=True),
]
BOTTLENECKS = [
    BottleneckUnit(8, 32, 3, 0.25, 1, False, 15, 20),
    BottleneckUnit(32, 32, 7, 0.5, 1, True, 15, 20),
    BottleneckUnit(16, 24, 5, 0.5, 2, False, 15, 20),
]
STEMS = [
    Stem(8, 33, 64),
    Stem(8, 33, 64, activation="hardswish"),
    Stem(8, 37, 64, activation="relu", kernel=7, pooled=True),
]
OTHERS = [Lateral(8, 16, 15, 20), P6(8, 16, 15, 20), Boundary(8, 15, 20)]
CHAINS = [*MBCONVS, *BOTTLENECKS, *STEMS, *OTHERS]
EVERY_UNIT = [*CHAINS, REST, rest_unit(replace(DETECTOR, head="ssdlite"), SIZE)]


def run(model, inputs=None):
    session = ort_session("ort-cpu", model, 1)
    inputs = random_inputs(model) if inputs is None else inputs
    types = {
        x.name: np.float16 if "float16" in x.type else np.float32 for x in session.get_inputs()
    }
    return session.run(None, {name: x.astype(types[name]) for name, x in inputs.items()})


def constants(model):
    graph = onnx.load_from_string(model).graph
    return {constant.name: numpy_helper.to_array(constant) for constant in graph.initializer}


def weights_of(model):
    """(weight, bias) of every convolution before the rest of the detector, in order."""
    values = constants(model)
    return [
        tuple(torch.from_numpy(values[name].copy()) for name in node.input[1:])
        for node in onnx.load_from_string(model).graph.node
        if node.op_type == "Conv" and node.input[1].startswith("unit.")
    ]


class Normalise(nn.Module):
    def forward(self, images):
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
        return (images - mean) / std


def torch_layers(unit):
    """The unit as the detector builds it, behind what its graph begins with."""
    match unit:
        case Stem():
            pooling = [stem_pooling()] if unit.pooled else []
            return [Normalise(), stem(unit.c_out, unit.activation, unit.kernel), *pooling]
        case MBConvUnit() | BottleneckUnit():
            return [nn.Conv2d(4, unit.c_in, 1), conv_operation(unit)]
        case Lateral():
            return [nn.Conv2d(4, unit.c_in, 1), nn.Conv2d(unit.c_in, unit.c_out, 1)]
        case P6():
            return [nn.Conv2d(4, unit.c_in, 1), nn.Conv2d(unit.c_in, unit.c_out, 3, 2, 1)]
        case Boundary():
            return [nn.Conv2d(4, unit.channels, 1)]


@torch.no_grad()
def torch_twin(unit, weights):
    """The layers between two 1x1 convolutions with 4 channels outside, with these weights."""
    width = boundaries(unit)[-1].channels if not isinstance(unit, Boundary) else unit.channels
    twin = nn.Sequential(*torch_layers(unit), nn.Conv2d(width, 4, 1)).eval()
    convs = [m for m in twin.modules() if isinstance(m, nn.Conv2d)]
    norms = (m for m in twin.modules() if isinstance(m, nn.BatchNorm2d))
    for conv, (weight, bias) in zip(convs, weights, strict=True):
        conv.weight.copy_(weight)
        if conv.bias is None:  # the BatchNorm that follows else changes nothing
            norm = next(norms)
            norm.eps = 0.0
            norm.bias.copy_(bias)
        else:
            conv.bias.copy_(bias)
    return twin


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("unit", CHAINS, ids=repr)
def test_a_unit_computes_what_its_module_between_two_convolutions_computes(unit, batch):
    model = unit_model(unit, batch=batch)
    (x,) = random_inputs(model).values()
    assert x.shape == (batch, 3 if isinstance(unit, Stem) else 4, unit.height, unit.width)
    with torch.no_grad():
        expected = torch_twin(unit, weights_of(model))(torch.from_numpy(x))
    np.testing.assert_allclose(run(model)[0], expected.numpy(), rtol=1e-4, atol=1e-5)


def rest_module(model):
    """The module that ends every detector, with the weights of the graph."""
    module = RestOfDetector(build_detector(Backbone(mobilenet_v2()), DETECTOR), DETECTOR, SIZE)
    values = {name: torch.from_numpy(value.copy()) for name, value in constants(model).items()}
    found = {name: values[name] for name in module.state_dict() if name in values}
    missing, _ = module.load_state_dict(found, strict=False)
    # The laterals and P6 are no part of the rest.
    assert all("inner_blocks" in name or ".p6." in name for name in missing)
    return module.eval()


@pytest.mark.parametrize("batch", [1, 2])
def test_the_rest_behind_light_convolutions_computes_what_its_module_computes(batch):
    model = unit_model(REST, batch=batch)
    inputs = [torch.from_numpy(x) for x in random_inputs(model).values()]
    with torch.no_grad():
        lights = zip(inputs, weights_of(model), strict=True)
        features = [nn.functional.conv2d(x, *weights) for x, weights in lights]
        expected = batch_detections(*(x.numpy() for x in rest_module(model)(*features)))
    for a, b in zip(expected, batch_detections(*run(model)), strict=True):
        report = match_detections(a, b, score_tol=1e-5, box_tol=0.05, detections=len(a.scores))
        assert report.same
        assert report.matched > 10


def test_the_rest_reads_one_light_input_per_map_that_others_compute():
    inputs = random_inputs(unit_model(REST))
    assert list(inputs) == [f"light_{name}" for name in rest_inputs(3)]
    maps = boundaries(REST)
    assert [x.shape for x in inputs.values()] == [(1, 4, m.height, m.width) for m in maps]


@pytest.mark.parametrize("head", ["retinanet", "fcos"])
@pytest.mark.parametrize("threshold", [0.05, 0.6])
def test_the_rest_has_something_to_suppress_whatever_it_reads(head, threshold):
    config = DetectorConfig(3, fpn_width=16, head_depth=1, head=head, score_threshold=threshold)
    number, *_ = run(unit_model(rest_unit(config, SIZE), tail="onnx-nms"))
    assert number > 3


def test_the_rest_needs_a_letterbox():
    fields = {**DETECTOR.to_dict(), "height": 60, "width": 96}
    with pytest.raises(AdaptError, match="multiple of 32"):
        unit_model(Rest(**fields))


def test_the_same_seed_gives_the_same_bytes():
    unit = MBCONVS[0]
    assert unit_model(unit, seed=1) == unit_model(unit, seed=1) != unit_model(unit, seed=2)


def tensor_types(model):
    """Element type of every tensor of a graph."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = [*graph.input, *graph.output, *graph.value_info]
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    return types | {constant.name: constant.data_type for constant in graph.initializer}


def producers(model):
    return {name: node.op_type for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("unit", EVERY_UNIT, ids=repr)
def test_a_unit_is_valid_onnx_in_every_precision(unit, precision):
    model = onnx.load_from_string(unit_model(unit, precision=precision))
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert not model.metadata_props


@pytest.mark.parametrize("unit", EVERY_UNIT, ids=repr)
def test_in_fp16_every_convolution_is_half(unit):
    model = onnx.load_from_string(unit_model(unit, precision="fp16"))
    types = tensor_types(model)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    found = {types[name] for conv in convs for name in (*conv.input, *conv.output)}
    assert found == {onnx.TensorProto.FLOAT16}


def test_in_fp16_images_and_detections_are_float32():
    image = random_inputs(unit_model(STEMS[0], precision="fp16"))["images"]
    _, boxes, scores, _ = run(unit_model(REST, precision="fp16"))
    assert {x.dtype for x in (image, boxes, scores)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("unit", EVERY_UNIT, ids=repr)
def test_in_int8_every_convolution_reads_dequantised_values(unit):
    model = onnx.load_from_string(unit_model(unit, precision="int8"))
    made = producers(model)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert {made.get(name) for conv in convs for name in conv.input[:2]} == {"DequantizeLinear"}
    assert not {made.get(conv.input[2]) for conv in convs} - {None}


@pytest.mark.parametrize("unit", EVERY_UNIT, ids=repr)
def test_for_a_processor_every_convolution_of_int8_computes_in_integers(unit, tmp_path):
    import onnxruntime

    model = unit_model(unit, precision="int8", library="ort-cpu")
    exported = Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run = Counter(node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node)
    assert run["QLinearConv"] == exported["Conv"] > 0
    assert run["Conv"] == run["FusedConv"] == 0


@pytest.mark.parametrize(("saturates", "largest"), [(False, 127), (True, 64)])
def test_weights_have_seven_bits_where_sums_of_products_overflow(saturates, largest, monkeypatch):
    monkeypatch.setattr("export.graph.zero_points.int8_saturates", lambda: saturates)
    model = onnx.load_from_string(unit_model(MBCONVS[0], precision="int8", library="ort-cpu"))
    found = [
        int(np.abs(numpy_helper.to_array(one).astype(int)).max())
        for one in model.graph.initializer
        if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 4
    ]
    assert len(found) == 5
    assert set(found) == {largest}


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-3), ("int8", 0.05)])
@pytest.mark.parametrize("unit", CHAINS, ids=repr)
def test_a_unit_computes_nearly_the_same_in_lower_precision(unit, precision, tolerance):
    if precision == "int8":
        skip_where_int8_saturates()
    inputs = {name: x.clip(0, 1) for name, x in random_inputs(unit_model(unit)).items()}
    (expected,) = run(unit_model(unit), inputs)
    (found,) = run(unit_model(unit, precision=precision), inputs)
    assert found.dtype == (np.float16 if precision == "fp16" else np.float32)
    error = np.abs(found.astype(np.float32) - expected).max() / np.abs(expected).max()
    assert 0 < error < tolerance


@pytest.mark.parametrize("unit", CHAINS, ids=repr)
def test_int8_between_fp16_computes_what_int8_between_fp32_does(unit):
    skip_where_int8_saturates()
    inputs = {name: x.clip(0, 1) for name, x in random_inputs(unit_model(unit)).items()}
    (expected,) = run(unit_model(unit, precision="int8"), inputs)
    model = unit_model(unit, precision="int8", rest="fp16")
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    (found,) = run(model, inputs)
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_rest_detects_in_lower_precision(precision):
    number, boxes, scores, _ = run(unit_model(REST, precision=precision))
    assert number > 3
    assert np.isfinite(boxes).all()
    assert (np.diff(scores) <= 0).all()


EXPORTS = [
    ("mobilenet_v2", "fp32", "onnx-nms"),
    ("mobilenet_v3_large", "fp16", "tensor-nms"),
    *(
        pytest.param(export, marks=pytest.mark.slow)
        for export in (
            ("mobilenet_v2", "fp16", "tensor-nms"),
            ("mnasnet1_0", "fp32", "tensor-nms"),
            ("mobilenet_v3_large", "fp32", "tensor-nms"),
            ("mobilenet_v3_large", "fp16", "onnx-nms"),
            ("resnet50", "fp32", "onnx-nms"),
        )
    ),
]


@pytest.fixture(scope="module", params=EXPORTS, ids=str)
def exported_and_composed(request, tmp_path_factory):
    """The graph of `adapt export`, and its quick twin, of the same random architecture."""
    source, precision, tail = request.param
    network = random_architecture(tiny(source), seed=0)
    info = DetectorInfo(network, DETECTOR, SIZE, ("circle", "square", "star"))
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    model = info.build().eval()
    for parameter in model.parameters():  # the exporter leaves out biases that are zero
        if not parameter.any():
            nn.init.normal_(parameter)
    export_detector(model, info, path, GraphOptions(tail, precision), provenance={})
    whole = WholeDetector(network, DETECTOR, SIZE)
    composed = detector_model(whole, precision=precision, tail=tail)
    return onnx.load(path), onnx.load_from_string(composed)


def test_composed_detector_has_the_operators_of_the_export(exported_and_composed):
    def operators(model):
        made = producers(model)
        return Counter(
            (node.op_type, tuple(made.get(name) for name in node.input))
            for node in model.graph.node
        )

    exported, composed = map(operators, exported_and_composed)
    assert composed == exported


def test_composed_detector_has_the_convolutions_of_the_export(exported_and_composed):
    def convolutions(model):
        shapes = {constant.name: tuple(constant.dims) for constant in model.graph.initializer}
        types = tensor_types(model)
        found = Counter()
        for node in model.graph.node:
            if node.op_type == "Conv":
                fields = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                layout = (*fields["strides"], *fields["pads"], fields["group"])
                found[shapes[node.input[1]], layout, types[node.input[0]]] += 1
        return found

    exported, composed = map(convolutions, exported_and_composed)
    assert composed == exported
    assert composed.total() > 40


def test_composed_detector_has_the_inputs_and_outputs_of_the_export(exported_and_composed):
    exported, composed = exported_and_composed
    assert composed.graph.input == exported.graph.input
    assert composed.graph.output == exported.graph.output


@pytest.mark.parametrize("precision", PRECISIONS)
def test_composed_detector_is_valid_onnx_and_runs(precision):
    model = detector_model(WHOLE, precision=precision)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    images = random_inputs(model)
    assert {name: (x.shape, x.dtype) for name, x in images.items()} == {
        "images": ((1, 3, 64, 96), np.float32)
    }
    found = dict(zip(DETECTIONS, run(model), strict=True))
    assert found["boxes"].dtype == found["scores"].dtype == np.float32
