"""Rounding goes where no integer convolution is beside it, and stays where one is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tintype.kernels.registry import tidy


def _two_convolutions(model_of, random, integer):
    """conv, rounded, conv, rounded; the `integer` ones have stored weights, the others floats."""
    constants = {"step": np.array(0.05, np.float32), "middle": np.array(128, np.uint8)}
    nodes, source = [], "x"
    for index in (0, 1):
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "middle"], [f"q{index}"]),
            helper.make_node("DequantizeLinear", [f"q{index}", "step", "middle"], [f"d{index}"]),
        ]
        weight = random.integers(-9, 10, (4, 4, 3, 3))
        if index in integer:
            constants |= {f"w{index}": weight.astype(np.int8), f"s{index}": np.full(4, 0.01, np.float32)}
            constants[f"z{index}"] = np.zeros(4, np.int8)
            stored = [f"w{index}", f"s{index}", f"z{index}"]
            nodes.append(helper.make_node("DequantizeLinear", stored, [f"weight{index}"], axis=0))
        else:
            constants[f"weight{index}"] = (weight * 0.01).astype(np.float32)
        nodes.append(helper.make_node("Conv", [f"d{index}", f"weight{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        source = f"c{index}"
    nodes += [
        helper.make_node("QuantizeLinear", [source, "step", "middle"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "step", "middle"], ["y"]),
    ]
    return model_of(nodes, {"x": (TensorProto.FLOAT, [1, 4, 5, 6])}, ["y"], constants)


@pytest.mark.parametrize(("integer", "left"), [((0, 1), 3), ((0,), 2), ((1,), 2), ((), 0)])
def test_rounding_is_kept_on_both_sides_of_an_integer_convolution_only(model_of, random, integer, left):
    model = _two_convolutions(model_of, random, integer)
    rewritten = ir.from_proto(model)
    assert tidy(rewritten, "cpu") == ({"idle_rounding": 3 - left} if left < 3 else {})
    assert sum(node.op_type == "QuantizeLinear" for node in rewritten.graph) == left
    x = random.standard_normal((1, 4, 5, 6)).astype(np.float32)
    before, after = (ReferenceEvaluator(each).run(None, {"x": x})[0] for each in (model, ir.to_proto(rewritten)))
    np.testing.assert_allclose(after, before, atol=0.15)  # three roundings to steps of 0.05


def _rectified_convolutions(model_of, random, zero, also_returned):
    """conv, rounded, ReLU, rounded with that zero point, conv, rounded; in 8 bits."""
    weight = random.integers(-9, 10, (4, 4, 3, 3)).astype(np.int8)
    constants = {
        "weight": weight, "steps": np.full(4, 0.01, np.float32), "zeros": np.zeros(4, np.int8),
        "step": np.array(0.05, np.float32), "middle": np.array(128, np.uint8), "zero": np.array(zero, np.uint8),
    }  # fmt: skip
    nodes = [helper.make_node("DequantizeLinear", ["weight", "steps", "zeros"], ["w"], axis=0)]

    def rounded(source, zero_point, name):
        nodes.append(helper.make_node("QuantizeLinear", [source, "step", zero_point], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "step", zero_point], [name]))
        return name

    def convolved(source, name):
        nodes.append(helper.make_node("Conv", [source, "w"], [name], pads=[1, 1, 1, 1]))
        return name

    first = rounded(convolved(rounded("x", "middle", "x_rounded"), "conv"), "middle", "conv_rounded")
    nodes.append(helper.make_node("Relu", [first], ["relu"]))
    rounded(convolved(rounded("relu", "zero", "relu_rounded"), "second"), "middle", "y")
    outputs = ["y", "relu"] if also_returned else ["y"]
    return model_of(nodes, {"x": (TensorProto.FLOAT, [1, 4, 5, 6])}, outputs, constants)


@pytest.mark.parametrize(("zero", "also_returned", "left"), [(0, False, 3), (1, False, 4), (0, True, 4)])
def test_a_relu_whose_output_is_rounded_rounds_for_the_convolution_before_it(
    model_of, random, zero, also_returned, left
):
    model = _rectified_convolutions(model_of, random, zero, also_returned)
    rewritten = ir.from_proto(model)
    assert tidy(rewritten, "cpu") == ({"idle_rounding": 1} if left == 3 else {})
    assert sum(node.op_type == "QuantizeLinear" for node in rewritten.graph) == left
    assert sum(node.op_type == "Relu" for node in rewritten.graph) == (left == 4)
    x = random.standard_normal((1, 4, 5, 6)).astype(np.float32)
    before, after = (ReferenceEvaluator(each).run(["y"], {"x": x})[0] for each in (model, ir.to_proto(rewritten)))
    np.testing.assert_allclose(after, before, atol=0.11)  # one rounding less, to steps of 0.05, and the last one's step
    assert np.abs(after).max() > 0.15
