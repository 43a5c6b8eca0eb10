"""A split linear layer lowered to two linear layers means what it meant."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tintype.kernels.cpu.geglu import GegluAsTwoLinears


def _model(model_of, weight, bias, *, approximate="none", extra_reader=False):
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["product"])]
    constants = {"weight": weight}
    wide = "product"
    if bias is not None:
        nodes.append(helper.make_node("Add", ["product", "bias"], ["wide"]))
        constants["bias"] = bias
        wide = "wide"
    nodes += [
        helper.make_node("Split", [wide], ["value", "gate"], axis=2, num_outputs=2),
        helper.make_node("Gelu", ["gate"], ["open"], approximate=approximate),
        helper.make_node("Mul", ["value", "open"], ["y"]),
    ]
    outputs = ["y", wide] if extra_reader else ["y"]
    inputs = {"x": (TensorProto.FLOAT, ["batch", "length", weight.shape[0]])}
    return model_of(nodes, inputs, outputs, constants)


@pytest.mark.parametrize(("batch", "length", "width", "half"), [(1, 1, 3, 1), (2, 65, 16, 64), (3, 7, 33, 5)])
def test_value_and_gate_come_from_two_linear_layers(model_of, lowered, random, batch, length, width, half):
    weight = random.standard_normal((width, 2 * half), np.float32) / np.sqrt(width, dtype=np.float32)
    bias = random.standard_normal(2 * half, np.float32)
    x = random.standard_normal((batch, length, width), np.float32)
    result = lowered(_model(model_of, weight, bias), {"x": x})
    assert sorted(result.operators) == ["Add", "BiasGelu", "MatMul", "MatMul", "Mul"]
    np.testing.assert_allclose(result.after["y"], GegluAsTwoLinears.reference(x, weight, bias), atol=1e-5)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("biased", [True, False])
def test_without_bias_or_with_another_gelu_it_stays_right(model_of, lowered, random, approximate, biased):
    weight, x = random.standard_normal((6, 8), np.float32), random.standard_normal((2, 5, 6), np.float32)
    bias = random.standard_normal(8, np.float32) if biased else None
    result = lowered(_model(model_of, weight, bias, approximate=approximate), {"x": x})
    assert "Split" not in result.operators
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


def test_half_precision_weights_stay_half(model_of, lowered, random):
    weight, x = random.standard_normal((6, 8)).astype(np.float16), random.standard_normal((2, 5, 6), np.float32)
    model = _model(model_of, weight.astype(np.float32), np.ones(8, np.float32))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "stored"))
    model.graph.node.insert(0, helper.make_node("Cast", ["stored"], ["weight"], to=TensorProto.FLOAT))
    result = lowered(model, {"x": x})
    assert sorted(result.operators) == ["Add", "BiasGelu", "Cast", "Cast", "MatMul", "MatMul", "Mul"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


def test_a_wide_tensor_that_others_read_is_left_alone(model_of, lowered, random):
    weight, x = random.standard_normal((6, 8), np.float32), random.standard_normal((2, 5, 6), np.float32)
    result = lowered(_model(model_of, weight, np.zeros(8, np.float32), extra_reader=True), {"x": x})
    assert "Split" in result.operators
    np.testing.assert_array_equal(result.after["y"], result.before["y"])
