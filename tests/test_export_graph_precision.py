from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from export_parts import INFO, exported, images, small_detector, tensors
from onnx import numpy_helper
from processor import skip_where_int8_saturates

from adapt.cost.units import MBConvUnit, Stem
from bench.latency.onnx_units import random_inputs, unit_model
from export.graph.detector import RawHeads, export_detector, read_onnx_info
from export.graph.onnx_file import fused
from export.graph.options import GraphOptions
from export.graph.precision import with_qdq
from export.run.onnx_session import ort_session
from export.run.parity import NamedImages, Tolerances, verify_export
from export.run.runner import unit

RESIDUAL = MBConvUnit(8, 8, 5, 6, 1, True, 15, 20)
UNITS = [RESIDUAL, MBConvUnit(8, 16, 3, 1, 2, False, 15, 20), Stem(8, 32, 64)]
HALF, FLOAT, INT8 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT, onnx.TensorProto.INT8


@pytest.fixture(scope="module")
def half_detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    return export_detector(
        small_detector(), INFO, path, GraphOptions(precision="fp16"), provenance={}
    )


def quantize_static_options():
    """Options with which ONNX Runtime's quantize_static puts the same pairs at the same places."""
    from onnxruntime.quantization import QuantFormat, QuantType

    return {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": ["Conv"],
        "per_channel": True,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    }


def quantised_by_onnx_runtime(model, *inputs, path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Calibration(CalibrationDataReader):
        left = iter(inputs)

        def get_next(self):
            return next(self.left, None)

    quantize_static(model, path, Calibration(), **quantize_static_options())
    return onnx.load(path)


def operators(model):
    """How often each operator reads from which operators."""
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    return Counter(
        (node.op_type, tuple(made.get(name) for name in node.input)) for node in model.graph.node
    )


def constants(model):
    return {constant.name: constant for constant in model.graph.initializer}


def readers(model, name):
    return [node for node in model.graph.node if name in node.input]


def only_reader(model, name):
    (node,) = readers(model, name)
    return node


@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_units_have_the_pairs_of_quantize_static(unit, tmp_path):
    model = unit_model(unit)
    expected = quantised_by_onnx_runtime(
        onnx.load_from_string(model), random_inputs(model), path=tmp_path / "unit.onnx"
    )
    assert operators(with_qdq(onnx.load_from_string(model))) == operators(expected)


def test_detectors_have_the_pairs_of_quantize_static(exports, tmp_path):
    path = exported(exports)
    expected = quantised_by_onnx_runtime(
        path, {"images": unit(images(1))}, path=tmp_path / "detector.onnx"
    )
    found = with_qdq(onnx.load(path))
    onnx.checker.check_model(found, full_check=True)
    assert operators(found) == operators(expected)


def test_with_calibrated_scales_heads_compute_what_those_of_quantize_static_do(exports, tmp_path):
    skip_where_int8_saturates()
    path = exported(exports, "none")
    batches = [{"images": unit(images(1, seed))} for seed in range(3)]
    expected = quantised_by_onnx_runtime(path, *batches, path=tmp_path / "heads.onnx")
    scales = {
        name.removesuffix("_scale"): numpy_helper.to_array(constant).item()
        for name, constant in constants(expected).items()
        if name.endswith("_scale") and not constant.dims
    }
    found, same, fp32 = (
        ort_session("ort-cpu", model.SerializeToString(), 1).run(["cls_logits"], batches[0])[0]
        for model in (with_qdq(onnx.load(path), scales), expected, onnx.load(path))
    )
    np.testing.assert_array_equal(found, same)
    assert 0.9 < np.corrcoef(found.ravel(), fp32.ravel())[0, 1] < 0.9999


def test_weights_are_quantised_per_channel_and_activations_per_tensor():
    model = with_qdq(onnx.load_from_string(unit_model(RESIDUAL)), 0.02)
    found = constants(model)
    for conv in (node for node in model.graph.node if node.op_type == "Conv"):
        x, weight = (name.removesuffix("_DequantizeLinear_Output") for name in conv.input[:2])
        assert numpy_helper.to_array(found[f"{x}_scale"]) == np.float32(0.02)
        values, scale = (numpy_helper.to_array(found[name]) for name in (weight, f"{weight}_scale"))
        assert scale.shape == values.shape[:1]
        largest = np.abs(values / scale[:, None, None, None]).max((1, 2, 3))
        np.testing.assert_allclose(largest, 127, rtol=1e-6)
        for name in (x, weight):
            zero = found[f"{name}_zero_point"]
            assert zero.data_type == INT8
            assert not numpy_helper.to_array(zero).any()


def test_a_channel_without_weights_stays_zero():
    model = onnx.load_from_string(unit_model(UNITS[1]))
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values[0] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    quantised = with_qdq(model).SerializeToString()
    (found,) = ort_session("ort-cpu", quantised, 1).run(None, random_inputs(quantised))
    assert np.isfinite(found).all()


def test_a_residual_addition_shares_the_pair_of_its_block_and_leaves_the_branch_alone():
    model = with_qdq(onnx.load_from_string(unit_model(RESIDUAL)))
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    shortcut, branch = add.input
    assert {node.op_type for node in readers(model, shortcut)} == {"Conv", "Add"}
    assert shortcut.endswith("_DequantizeLinear_Output")
    assert branch in {name for n in model.graph.node if n.op_type == "Conv" for name in n.output}


def test_no_pair_stands_between_convolution_and_clip():
    model = with_qdq(onnx.load_from_string(unit_model(RESIDUAL)))
    kinds = Counter(
        only_reader(model, node.output[0]).op_type
        for node in model.graph.node
        if node.op_type == "Conv" and node.output[0] != model.graph.output[0].name
    )
    assert kinds == {"QuantizeLinear": 1, "Clip": 2, "Add": 1}  # the first is the light one's


def test_weights_that_five_levels_share_have_one_pair(exports):
    model = with_qdq(onnx.load(exported(exports)))
    pairs = Counter(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    assert set(pairs.values()) == {1}
    shared = [n for n in pairs if "cls_logits.weight" in n]
    assert len(readers(model, f"{shared[0]}_DequantizeLinear_Output")) == 5


def test_the_given_model_is_left_alone():
    model = onnx.load_from_string(unit_model(RESIDUAL))
    with_qdq(model)
    assert model.SerializeToString() == unit_model(RESIDUAL)


def test_half_heads_give_nearly_the_same_in_float32():
    x = tensors(1)
    with torch.no_grad():
        found = RawHeads(fused(small_detector()).half())(x)
        expected = RawHeads(small_detector())(x)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert 1e-4 < (a - b).abs().max() < 0.2 * b.std()


def test_fp16_detections_nearly_equal_torchvisions(half_detector):
    report = verify_export(
        small_detector(),
        INFO,
        half_detector,
        NamedImages(images(4)),
        tolerances=Tolerances.of("fp16"),
    )
    assert report.match.matched > 200
    assert report.match.missing + report.match.extra < 0.05 * report.match.matched


def test_fp16_files_say_so_and_take_and_give_float32(half_detector):
    assert read_onnx_info(half_detector)[1]["precision"] == "fp16"
    graph = onnx.load(half_detector).graph
    types = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)
    }
    assert HALF not in types.values()
    assert types["images"] == types["boxes"] == types["scores"] == FLOAT


def test_in_fp16_normalisation_and_all_after_the_heads_are_fp32(half_detector):
    model = onnx.shape_inference.infer_shapes(onnx.load(half_detector), strict_mode=True)
    half = {v.name for v in model.graph.value_info if v.type.tensor_type.elem_type == HALF}
    kinds = {node.op_type for node in model.graph.node if half & {*node.output}}
    body = {"Cast", "Conv", "Clip", "Add", "Relu", "Resize", "Reshape", "Transpose", "Concat"}
    assert kinds == body
    back = [n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in half]
    assert len(back) == 2  # logits and deltas


def test_fp16_export_leaves_the_model_in_fp32(half_detector):
    assert {parameter.dtype for parameter in small_detector().parameters()} == {torch.float32}
