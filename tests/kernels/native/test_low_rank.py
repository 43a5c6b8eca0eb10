"""What is added to a layer by low rank, inside the layer's node: x down up."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from own_nodes import give, model_of_node, rewritten

from tintype.kernels.base import OWN
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.graph import choice
from tintype.kernels.native.integer_linear import NativeIntegerGeglu, NativeIntegerLinear, packed_integers
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU
from tintype.kernels.native.linear import COLUMNS, NativeGeglu, NativeLinear, packed_weights

# rows, inputs, outputs, rank: odd, whole blocks, several parts of 16 of the rank, more inputs than are paired at once
SIZES = [
    (1, 1, 1, 1),
    (3, 5, 7, 2),
    (8, 33, 32, 3),
    (13, 64, 17, 8),
    (31, 7, 65, 16),
    (205, 40, 48, 17),
    (9, 1280, 20, 40),
]
LONG = (10, 1400, 40, 16)  # more inputs than a sum is made of at once
BFLOAT16 = 1e-2  # of what is added by low rank, of whose last product both factors are rounded to 8 digits


def _arrays(random, sizes, activation):
    rows, inputs, outputs, rank = sizes
    halves = 2 if activation == GEGLU else 1
    return {
        "x": random.standard_normal((rows, inputs), np.float32),
        "bias": random.standard_normal((halves, outputs), np.float32),
        "down": (random.standard_normal((inputs, rank)) / np.sqrt(inputs)).astype(np.float32),
        "up": (random.standard_normal((rank, halves * outputs)) / np.sqrt(rank)).astype(np.float32),
    }


def _parts(made, integers, scale):
    """What the layer's own weights make, and what is added: (halves, rows, outputs) each.

    Beside integers x is rounded for both, and down as they are, by the range of each column.
    """
    if scale is None:
        own = made["x"].astype(np.float64) @ integers + made["bias"][:, None]
        inner = made["x"].astype(np.float64) @ made["down"]
    else:
        kernel = NativeIntegerLinear()
        own = np.stack([kernel.reference(made["x"], *each) for each in zip(integers, scale, made["bias"], strict=True)])
        steps = np.abs(made["down"]).max(axis=0) / np.float32(127)
        rounded = np.rint(made["down"] / steps)
        inner = kernel.reference(made["x"], rounded, steps, np.zeros_like(steps))
    return own, np.stack(np.split(inner @ made["up"], len(own), axis=1))


def _activated(sums, activation):
    ones, none = np.eye(sums.shape[-1]), np.zeros(sums.shape[-1])
    if activation == GEGLU:
        return sums[0] * NativeLinear.reference(sums[1], ones, none, GELU)
    return NativeLinear.reference(sums[0], ones, none, activation)


def _linear(random, sizes, activation):
    made = _arrays(random, sizes, activation)
    _, inputs, outputs, _ = sizes
    weight = (random.standard_normal((len(made["bias"]), inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)
    return {"weights": packed_weights(*weight)}, made, (weight, None)


def _integers(random, sizes, activation):
    made = _arrays(random, sizes, activation)
    _, inputs, outputs, _ = sizes
    integers = random.integers(-127, 128, (len(made["bias"]), inputs, outputs), dtype=np.int8)
    scale = (random.uniform(0.5, 1.5, integers.shape[::2]) / np.sqrt(inputs) / 100).astype(np.float32)
    totals = integers.sum(axis=1, dtype=np.int32)[:, None]
    columns = [packed_weights(*each).reshape(-1, COLUMNS) for each in (scale[:, None], totals)]
    packed = {"weights": packed_integers(*integers), "scales": columns[0], "totals": columns[1]}
    return packed, made, (integers, scale)


def _node(operator, packed, made, activation, added=None):
    order = ("x", "weights", "bias", *(("scales", "totals") if "scales" in packed else ()))
    feed = {**packed, **made, **({} if added is None else {"added": added})}
    names = [*order, "added" if added is not None else "", "down", "up"]
    node = helper.make_node(operator, names, ["y"], domain=OWN, activation=activation)
    return model_of_node(node, {name: feed[name] for name in names if name}), feed


@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU, GEGLU])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_layer_of_floats_adds_it(instructions, run, random, sizes, activation):
    packed, made, weight = _linear(random, sizes, activation)
    model, feed = _node("LinearLayer", packed, made, activation)
    expected = _activated(sum(_parts(made, *weight)), activation)
    for each in instructions(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=5e-5)
        np.testing.assert_array_equal(one, two)


def test_sums_that_are_made_in_parts_have_it_once(instructions, run, random):
    packed, made, weight = _linear(random, LONG, SILU)
    added = random.standard_normal((10, 40), np.float32)
    model, feed = _node("LinearLayer", packed, made, SILU, added)
    for each in instructions(model):
        np.testing.assert_allclose(
            run(each, feed)["y"], _activated(sum(_parts(made, *weight)), SILU) + added, atol=5e-5
        )


@pytest.mark.parametrize("activation", [PLAIN, GELU, SILU, GEGLU])
@pytest.mark.parametrize("sizes", [*SIZES, LONG], ids=str)
def test_a_layer_of_integers_adds_it(sets, run, random, sizes, activation):
    """Its last product is one of floats, and where the set has them of bfloat16."""
    packed, made, weight = _integers(random, sizes, activation)
    added = random.standard_normal((sizes[0], sizes[2]), np.float32)
    model, feed = _node("IntegerLinear", packed, made, activation, added)
    own, low = _parts(made, *weight)
    expected, without = _activated(own + low, activation) + added, _activated(own, activation) + added
    for number, each in enumerate(sets(model)):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_array_equal(one, two)
        if number == 0:
            np.testing.assert_allclose(one, expected, rtol=5e-5, atol=5e-5)
        elif activation == PLAIN:
            np.testing.assert_allclose(one - without, low[0], atol=BFLOAT16 * max(1.0, np.abs(low).max()))
        else:
            assert np.abs(one - expected).mean() <= BFLOAT16 * np.abs(expected - without).mean() + 1e-4


def test_of_nothing_nothing_is_added(sets, instructions, run, random):
    for operator, make, each_set in (("LinearLayer", _linear, instructions), ("IntegerLinear", _integers, sets)):
        packed, made, _ = make(random, (9, 40, 33, 8), GELU)
        made["up"][:] = 0
        model, feed = _node(operator, packed, made, GELU)
        names = [name for name in model.graph.node[0].input if name not in ("down", "up", "")]
        plain = helper.make_node(operator, names, ["y"], domain=OWN, activation=GELU)
        bare = model_of_node(plain, {name: feed[name] for name in names})
        for with_it, without in zip(each_set(model), each_set(bare), strict=True):
            np.testing.assert_array_equal(
                run(with_it, feed)["y"], run(without, {name: feed[name] for name in names})["y"]
            )


@pytest.mark.parametrize("change", [{"down": (19, 8)}, {"down": (20, 7)}, {"up": (8, 39)}, {"up": (8, 40, 1)}], ids=str)
@pytest.mark.parametrize("make", [_linear, _integers])
def test_what_does_not_fit_the_layer_is_an_error(able, run, random, change, make):
    packed, made, _ = make(random, (9, 20, 40, 8), PLAIN)
    model, feed = _node("LinearLayer" if make is _linear else "IntegerLinear", packed, made, PLAIN)
    ((name, shape),) = change.items()
    give(model, feed, name, np.zeros(shape, np.float32))
    with pytest.raises(Exception, match="by low rank"):
        run(model, feed)


def _layer(random, *, gated, integers, bias=True):
    """A layer with what is added by low rank and a residual or, gated, the two halves of a GEGLU."""
    width = 80 if gated else 40
    inner = "inner = MatMul (x, down)"
    tail = f"""{inner}
        outer = MatMul (inner, up)
        adapted = Add (layer, outer)
        y = Add (adapted, residual)"""
    if gated:
        tail = f"""v, g = Split <axis = -1, num_outputs = 2> (layer)
        {inner}
        uv, ug = Split <axis = 1, num_outputs = 2> (up)
        ov = MatMul (inner, uv)
        value = Add (v, ov)
        og = MatMul (inner, ug)
        gate = Add (g, og)
        opened = Gelu (gate)
        y = Mul (value, opened)"""
    stored = "weight = DequantizeLinear <axis = 1> (integers, scale, zero)" if integers else ""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]>
        graph (float[12, 24] x, float[12, 40] residual, float[24, 8] down, float[8, {width}] up)
            => (float[12, 40] y) {{
            {stored}
            product = MatMul (x, weight)
            {"layer = Add (product, bias)" if bias else "layer = Identity (product)"}
            {tail}
        }}"""
    model = onnx.parser.parse_model(text)
    if integers:
        constants = {
            "integers": random.integers(-127, 128, (24, width), dtype=np.int8),
            "scale": random.uniform(0.001, 0.002, width).astype(np.float32),
            "zero": np.zeros(width, np.int8),
        }
    else:
        constants = {"weight": (random.standard_normal((24, width)) / 5).astype(np.float32)}
    constants["bias"] = random.standard_normal(width, np.float32)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    made = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    if gated:
        made.graph.inputs.remove(next(value for value in made.graph.inputs if value.name == "residual"))
    feed = {
        "x": random.standard_normal((12, 24), np.float32),
        "residual": random.standard_normal((12, 40), np.float32),
        "down": random.standard_normal((24, 8), np.float32) / 5,
        "up": random.standard_normal((8, width), np.float32) / 3,
    }
    return made, {str(value.name): feed[str(value.name)] for value in made.graph.inputs}


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "integers"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_layer_takes_it_along(able, run, random, gated, integers):
    model, feed = _layer(random, gated=gated, integers=integers)
    before = run(ir.to_proto(model), feed)["y"]
    kernels = {False: (NativeLinear(), NativeGeglu()), True: (NativeIntegerLinear(), NativeIntegerGeglu())}[integers]
    halves = [GegluAsTwoLinears()] if gated else []
    model = rewritten(model, *halves)
    (layer,) = choice.layers(model.graph, [kernels[gated]])
    assert {str(value.name) for value in layer.inputs} == set(feed)  # it is timed with all that it replaces
    model = rewritten(model, kernels[gated])
    assert [node.op_type for node in model.graph] == ["IntegerLinear" if integers else "LinearLayer"]
    after = run(ir.to_proto(model), feed)["y"]
    without = run(ir.to_proto(model), {**feed, "up": np.zeros_like(feed["up"])})["y"]
    assert np.abs(after - before).mean() <= (0.02 if integers else 1e-5) * np.abs(without - before).mean() + 1e-5


@pytest.mark.parametrize("integers", [False, True], ids=["floats", "integers"])
def test_a_half_of_a_layer_alone_leaves_it_beside(able, run, random, integers):
    """Of a GEGLU's two layers, each by itself: up's other half belongs to the other one."""
    model, feed = _layer(random, gated=True, integers=integers)
    before = run(ir.to_proto(model), feed)["y"]
    model = rewritten(model, GegluAsTwoLinears(), NativeIntegerLinear() if integers else NativeLinear())
    operators = [node.op_type for node in model.graph]
    assert operators.count("IntegerLinear" if integers else "LinearLayer") == 2
    assert operators.count("MatMul") == 3
    np.testing.assert_allclose(run(ir.to_proto(model), feed)["y"], before, atol=0.1 if integers else 1e-4)


@pytest.mark.parametrize("what", ["other", "shared", "fixed"])
def test_what_is_not_its_own_low_rank_stays(able, run, random, what):
    """Of something else than x, read by another one too, or fixed."""
    model, feed = _layer(random, gated=False, integers=False)
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    if what == "other":
        nodes["inner"].replace_input_with(0, _twice(model))
    if what == "shared":
        nodes["y"].replace_input_with(1, nodes["outer"].outputs[0])
    if what == "fixed":
        up = next(value for value in model.graph.inputs if value.name == "up")
        model.graph.inputs.remove(up)
        up.const_value = ir.tensor(feed.pop("up"), name="up")
        model.graph.register_initializer(up)
    if what == "shared":
        model.graph.inputs.remove(next(value for value in model.graph.inputs if value.name == "residual"))
        feed.pop("residual")
    before = run(ir.to_proto(model), feed)["y"]
    model = rewritten(model, NativeLinear())
    assert sum(node.op_type == "MatMul" for node in model.graph) >= 1
    np.testing.assert_allclose(run(ir.to_proto(model), feed)["y"], before, atol=1e-4)


def _twice(model):
    node = ir.Node("", "Add", [model.graph.inputs[0], model.graph.inputs[0]], num_outputs=1)
    node.outputs[0].name, node.outputs[0].shape = "twice", model.graph.inputs[0].shape
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.insert_before(model.graph[0], node)
    return node.outputs[0]
