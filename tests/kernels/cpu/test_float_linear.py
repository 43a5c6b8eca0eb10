"""Small weights of integers become floats when a graph is built, where that was measured to be faster."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cpu.float_linear import LARGEST_BYTES, FloatLinear
from tintype.kernels.registry import measured_kernels

FLOAT = TensorProto.FLOAT


def _model(model_of, integers, scale, *, zero_point=None, gemm=False, readers=1):
    stored = integers.T if gemm else integers
    constants = {"weight": stored, "scale": scale}
    nodes = [helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=0 if gemm else 1)]
    if zero_point is not None:
        constants["zero"] = zero_point
        nodes[0].input.append("zero")
    names = [f"y{index}" for index in range(readers)]
    operator, how = ("Gemm", {"transB": 1}) if gemm else ("MatMul", {})
    nodes += [helper.make_node(operator, ["x", "float"], [name], name=f"product_{name}", **how) for name in names]
    return model_of(nodes, {"x": (FLOAT, [6, integers.shape[0]])}, names, constants)


@pytest.fixture
def weight(random):
    return random.integers(-127, 128, (24, 10)).astype(np.int8), random.random(10, np.float32) / 100


@pytest.mark.parametrize("gemm", [False, True])
def test_the_weights_are_the_same_floats(model_of, applied, random, weight, gemm):
    x = random.standard_normal((6, 24), np.float32)
    result = applied(_model(model_of, *weight, gemm=gemm), {"x": x}, FloatLinear())
    assert result.operators == ["Gemm" if gemm else "MatMul"]
    np.testing.assert_allclose(result.after["y0"], FloatLinear.reference(x, *weight), rtol=1e-5, atol=1e-5)


def test_a_zero_point_by_column_is_taken_off(model_of, applied, random, weight):
    integers, scale = weight
    zero = random.integers(100, 150, 10).astype(np.uint8)
    unsigned = (integers.astype(np.int16) + 128).astype(np.uint8)
    x = random.standard_normal((6, 24), np.float32)
    result = applied(_model(model_of, unsigned, scale, zero_point=zero), {"x": x}, FloatLinear())
    assert result.operators == ["MatMul"]
    expected = FloatLinear.reference(x, unsigned, scale, zero)
    np.testing.assert_allclose(result.after["y0"], expected, rtol=1e-5, atol=1e-5)


def test_what_an_int8_bundle_was_chosen_for_stays_small(model_of, applied, random):
    rows = LARGEST_BYTES // 4 // 64
    for extra, operators in ((0, ["MatMul"]), (1, ["DequantizeLinear", "MatMul"])):
        integers = random.integers(-127, 128, (rows + extra, 64)).astype(np.int8)
        x = random.standard_normal((6, rows + extra), np.float32)
        model = _model(model_of, integers, np.full(64, 0.01, np.float32))
        assert applied(model, {"x": x}, FloatLinear()).operators == operators


def test_a_weight_with_two_readers_stays(model_of, applied, random, weight):
    x = random.standard_normal((6, 24), np.float32)
    result = applied(_model(model_of, *weight, readers=2), {"x": x}, FloatLinear())
    assert result.operators.count("DequantizeLinear") == 1


def test_a_build_measures_it():
    for exactness in ("exact", "balanced"):
        assert "float_linear" in [kernel.name for kernel in measured_kernels("cpu", exactness=exactness)]
