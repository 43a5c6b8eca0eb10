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
