"""A layer of 8-bit integers as one node of our own: what it means, and what it takes along."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from own_nodes import give, model_of_node, rewritten

from tintype.kernels.base import OWN, Shapes
from tintype.kernels.cpu.dynamic_linear import DynamicLinear
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.graph import choice
from tintype.kernels.native.integer_linear import NativeIntegerGeglu, NativeIntegerLinear, packed_integers
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU
from tintype.kernels.native.linear import COLUMNS, packed_weights

LINEAR, GATED = NativeIntegerLinear(), NativeIntegerGeglu()
# rows, inputs, outputs. Panels are of 32 columns, or 16 and 16; rows go through by 8, inputs by 4 and, to round, by 16.
SIZES = [(1, 1, 1), (3, 5, 7), (8, 33, 32), (13, 64, 17), (31, 7, 65), (205, 40, 48), (17, 3000, 20)]


def _arrays(random, sizes, activation):
    rows, inputs, outputs = sizes
    halves = 2 if activation == GEGLU else 1
    x = random.standard_normal((rows, inputs), np.float32) * np.linspace(0.1, 30, rows, dtype=np.float32)[:, None]
    integers = random.integers(-127, 128, (halves, inputs, outputs), dtype=np.int8)
    scale = (random.uniform(0.5, 1.5, (halves, outputs)) / np.sqrt(inputs) / 100).astype(np.float32)
    return x, integers, scale, random.standard_normal((halves, outputs), np.float32)


def _node(x, integers, scale, bias, activation, added=None):
    totals = integers.sum(axis=1, dtype=np.int32)[:, None]
    of_columns = [packed_weights(*each).reshape(-1, COLUMNS) for each in (scale[:, None], totals)]
    names = ("x", "weights", "bias", "scales", "totals")
    arrays = dict(zip(names, (x, packed_integers(*integers), bias, *of_columns), strict=True))
    if added is not None:
        arrays["added"] = added
    node = helper.make_node("IntegerLinear", list(arrays), ["y"], domain=OWN, activation=activation)
    return model_of_node(node, arrays), arrays


def _expected(x, integers, scale, bias, activation):
    if activation == GEGLU:
        return LINEAR.reference(x, integers, scale, bias, GEGLU)
    return LINEAR.reference(x, integers[0], scale[0], bias[0], activation)


@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU, GEGLU])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_rounded_layer_by_every_set_of_instructions(sets, run, random, sizes, activation):
    arrays = _arrays(random, sizes, activation)
    model, feed = _node(*arrays, activation)
    expected = _expected(*arrays, activation)
    for each in sets(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(one, two)


def test_what_is_added_is_added_to_the_activation(sets, run, random):
    arrays, added = _arrays(random, (9, 20, 40), GELU), random.standard_normal((9, 40), np.float32)
    model, feed = _node(*arrays, GELU, added)
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], _expected(*arrays, GELU) + added, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("low", [-300.0, -3.0, 0.0, 2.0])
def test_the_largest_sums_are_exact(sets, run, low):
    x = np.tile(np.linspace(low, low + 255, 256, dtype=np.float32), (8, 8))
    integers, ones = np.full((1, x.shape[1], 33), 127, np.int8), np.ones((1, 33), np.float32)
    model, feed = _node(x, integers, ones, ones, PLAIN)
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], _expected(x, integers, ones, ones, PLAIN), rtol=1e-6)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_is_not_finite_and_no_other_row(sets, run, random, odd):
    arrays = _arrays(random, (10, 20, 33), PLAIN)
    arrays[0][4, 17] = odd
    model, feed = _node(*arrays, PLAIN)
    for each in sets(model):
        finite = np.isfinite(run(each, feed)["y"])
        assert not finite[4].any()
        assert finite[np.arange(10) != 4].all()


@pytest.mark.parametrize("level", [0.0, 1e-38, -1e-38, 5.0, -5.0])
def test_rows_of_one_number_are_right(sets, run, random, level):
    arrays = _arrays(random, (8, 12, 5), PLAIN)
    arrays[0][:] = level
    model, feed = _node(*arrays, PLAIN)
    exact = arrays[0].astype(np.float64) @ (arrays[1][0] * arrays[2][0].astype(np.float64)) + arrays[3]
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], exact, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (np.int8, (2, 6, 32, 4))}, "such a layer"),
        ({"weights": (np.int8, (1, 5, 32, 4))}, "such a layer"),
        ({"scales": (np.float32, (1, 32))}, "such a layer"),
        ({"totals": (np.int32, (2, 16))}, "such a layer"),
        ({"bias": (np.float32, (2, 40))}, "such a layer"),
        ({"added": (np.float32, (3, 39))}, "another shape"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_an_error(able, run, random, change, message):
    model, feed = _node(*_arrays(random, (3, 20, 40), PLAIN), PLAIN, np.zeros((3, 40), np.float32))
    ((name, (dtype, shape)),) = change.items()
    give(model, feed, name, np.zeros(shape, dtype))
    with pytest.raises(Exception, match=message):
        run(model, feed)


def test_a_set_without_such_products_refuses_it(able, instructions, run, random):
    model, feed = _node(*_arrays(random, (3, 20, 40), PLAIN), PLAIN)
    with pytest.raises(Exception, match="hasn't these instructions"):
        run(instructions(model)[0], feed)


def _model(random, *, gated=False, zero=0):
    """A layer of a stored weight with its bias and a residual or, gated, the two halves of a GEGLU."""
    width = 80 if gated else 40
    tail = "y = Add (layer, residual)"
    if gated:
        tail = """value, gate = Split <axis = -1, num_outputs = 2> (layer)
            opened = Gelu (gate)
            y = Mul (value, opened)"""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[12, 24] x, float[12, 40] residual) => (float[12, 40] y) {{
            weight = DequantizeLinear <axis = 1> (integers, scale, zero)
            product = MatMul (x, weight)
            layer = Add (product, bias)
            {tail}
        }}"""
    model = onnx.parser.parse_model(text)
    constants = {
        "integers": random.integers(-127, 128, (24, width), dtype=np.int8),
        "scale": random.uniform(0.001, 0.002, width).astype(np.float32),
        "zero": np.full(width, zero, np.int8),
        "bias": random.standard_normal(width, np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize("gated", [False, True])
def test_a_layer_becomes_one_node_that_is_nearer_than_with_one_range_for_all_rows(able, run, random, gated):
    model = _model(random, gated=gated)
    x = random.standard_normal((12, 24), np.float32) * np.linspace(0.1, 10, 12, dtype=np.float32)[:, None]
    feed = {"x": x} if gated else {"x": x, "residual": random.standard_normal((12, 40), np.float32)}
    if gated:
        del model.graph.inputs[1]
    exact, errors = run(ir.to_proto(model), feed)["y"], []
    for kernel in (GATED if gated else LINEAR, DynamicLinear()):
        copy = rewritten(ir.from_proto(ir.to_proto(model)), *([GegluAsTwoLinears()] if gated else []), kernel)
        errors.append(np.abs(run(ir.to_proto(copy), feed)["y"] - exact).mean())
        assert isinstance(kernel, DynamicLinear) or [node.op_type for node in copy.graph] == ["IntegerLinear"]
    assert errors[0] < errors[1]


def test_a_gated_layer_is_timed_with_all_that_it_replaces(random):
    model = rewritten(_model(random, gated=True), GegluAsTwoLinears())
    (layer,) = choice.layers(model.graph, [GATED])
    assert {node.op_type for node in choice.replaced(layer, GATED.name)} == {"MatMul", "Add", "BiasGelu", "Mul"}


@pytest.mark.parametrize("zero", [0, 3])
def test_weights_around_another_number_than_0_are_left_alone(random, zero):
    model = _model(random, zero=zero)
    assert [LINEAR.matches(node, Shapes()) for node in model.graph if node.op_type == "MatMul"] == [zero == 0]
