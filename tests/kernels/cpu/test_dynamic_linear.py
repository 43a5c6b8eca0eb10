"""Linear layers with int8 weights run as integer products, on inputs that are quantized once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tintype.engine import graph_session
from tintype.kernels.cpu.dynamic_linear import DynamicLinear
from tintype.kernels.cpu.geglu import GegluAsTwoLinears

FLOAT = TensorProto.FLOAT


def _quantized(random, inputs, outputs):
    weight = random.standard_normal((inputs, outputs), np.float32)
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def _model(model_of, integers, scale, *, bias=None, zero_point=None, readers=1):
    constants = {"weight": integers, "scale": scale}
    nodes = [helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=1)]
    if zero_point is not None:
        constants["zero"] = zero_point
        nodes[0].input.append("zero")
    names = [f"y{index}" for index in range(readers)]
    for name in names:
        product = name if bias is None else f"{name}_product"
        nodes.append(helper.make_node("MatMul", ["x", "float"], [product]))
        if bias is not None:
            nodes.append(helper.make_node("Add", [product, "bias"], [name]))
            constants["bias"] = bias
    return model_of(nodes, {"x": (FLOAT, ["batch", "length", integers.shape[0]])}, names, constants)


@pytest.mark.parametrize(("batch", "length", "inputs", "outputs"), [(1, 1, 1, 1), (2, 33, 40, 17), (4, 64, 96, 130)])
@pytest.mark.parametrize("biased", [True, False])
def test_the_product_is_that_of_rounded_inputs(model_of, lowered, random, batch, length, inputs, outputs, biased):
    integers, scale = _quantized(random, inputs, outputs)
    bias = random.standard_normal(outputs, np.float32) if biased else None
    x = random.standard_normal((batch, length, inputs), np.float32)
    result = lowered(_model(model_of, integers, scale, bias=bias), {"x": x})
    assert result.operators == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]
    expected = DynamicLinear.reference(x, integers, scale, 0.0 if bias is None else bias)
    np.testing.assert_allclose(result.after["y0"], expected, rtol=1e-5, atol=1e-4)
    spread = result.before["y0"].std() + 1e-6
    assert np.abs(result.after["y0"] - result.before["y0"]).max() < 0.1 * spread * np.sqrt(inputs)


def test_large_products_do_not_saturate(model_of, tmp_path, random):
    integers, scale = np.full((64, 16), 127, np.int8), np.ones(16, np.float32)
    onnx.save(_model(model_of, integers, scale), tmp_path / "model.onnx")
    x = np.full((1, 8, 64), 255.0, np.float32)
    with graph_session(tmp_path / "model.onnx", threads=1) as session:
        assert session.placement.count("MatMul") == 0
        np.testing.assert_allclose(session.run({"x": x})["y0"], 64 * 127 * 255.0, rtol=1e-6)


def test_readers_of_one_input_share_its_quantization(model_of, lowered, random):
    integers, scale = _quantized(random, 24, 12)
    x = random.standard_normal((2, 9, 24), np.float32)
    result = lowered(_model(model_of, integers, scale, readers=3), {"x": x})
    assert result.operators.count("DynamicQuantizeLinear") == 1
    assert result.operators.count("MatMulIntegerToFloat") == 3


def test_unsigned_weights_with_a_zero_point_are_as_good(model_of, lowered, random):
    integers, scale = _quantized(random, 24, 12)
    x = random.standard_normal((2, 9, 24), np.float32)
    shifted, zero = (integers.astype(np.int16) + 128).astype(np.uint8), np.full(12, 128, np.uint8)
    result = lowered(_model(model_of, shifted, scale, zero_point=zero), {"x": x})
    assert "MatMulIntegerToFloat" in result.operators
    np.testing.assert_allclose(result.after["y0"], DynamicLinear.reference(x, integers, scale), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_in_either_layout(model_of, lowered, random, transposed):
    integers, scale = _quantized(random, 20, 7)
    constants = {"weight": integers.T if transposed else integers, "scale": scale}
    constants["bias"] = random.standard_normal(7, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=0 if transposed else 1),
        helper.make_node("Gemm", ["x", "float", "bias"], ["y"], transB=transposed),
    ]
    x = random.standard_normal((5, 20), np.float32)
    result = lowered(model_of(nodes, {"x": (FLOAT, ["batch", 20])}, ["y"], constants), {"x": x})
    assert "MatMulIntegerToFloat" in result.operators
    expected = DynamicLinear.reference(x, integers, scale, constants["bias"])
    np.testing.assert_allclose(result.after["y"], expected, rtol=1e-5, atol=1e-4)


def test_int8_geglu_is_two_integer_products_of_one_input(model_of, lowered, random):
    integers, scale = _quantized(random, 16, 64)
    bias = random.standard_normal(64, np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=1),
        helper.make_node("MatMul", ["x", "float"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["wide"]),
        helper.make_node("Split", ["wide"], ["value", "gate"], axis=2, num_outputs=2),
        helper.make_node("Gelu", ["gate"], ["open"]),
        helper.make_node("Mul", ["value", "open"], ["y"]),
    ]
    constants = {"weight": integers, "scale": scale, "bias": bias}
    model = model_of(nodes, {"x": (FLOAT, ["batch", "length", 16])}, ["y"], constants)
    x = random.standard_normal((2, 30, 16), np.float32)
    result = lowered(model, {"x": x})
    assert result.operators.count("DynamicQuantizeLinear") == 1
    assert result.operators.count("MatMulIntegerToFloat") == 2
    assert "Split" not in result.operators
    value, gate = np.split(DynamicLinear.reference(x, integers, scale, bias), 2, axis=-1)
    eye = np.eye(64)
    expected = GegluAsTwoLinears.reference(np.concatenate([value, gate], axis=-1), eye, np.zeros(64))
    np.testing.assert_allclose(result.after["y"], expected, rtol=1e-4, atol=1e-3)


def test_a_float_weight_is_left_alone(model_of, lowered, random):
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    weight = random.standard_normal((4, 4), np.float32)
    x = random.standard_normal((1, 2, 4), np.float32)
    result = lowered(model_of(nodes, {"x": (FLOAT, [1, 2, 4])}, ["y"], {"weight": weight}), {"x": x})
    assert result.operators == ["MatMul"]
    np.testing.assert_array_equal(result.after["y"], result.before["y"])
