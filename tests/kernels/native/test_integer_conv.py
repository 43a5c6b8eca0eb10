"""A convolution of 8-bit integers as one node of our own: what it means, and what of a graph it takes along."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass
from own_nodes import give, model_of_node

from tintype.kernels.base import DOMAINS, OWN, Shapes
from tintype.kernels.cpu.upsample_conv import phase_weights
from tintype.kernels.native.integer_conv import (
    NativeIntegerConv,
    NativeIntegerUpsample,
    by_panel,
    packed_filters,
    panels_of,
    rounded_filters,
    totals_of,
)

KERNEL, UPSAMPLE = NativeIntegerConv(), NativeIntegerUpsample()
# batch, inputs, outputs, height, width, filter, stride, padding. Pixels go through by 8, are written by 64 and shared
# out by 256; panels are of 32 outputs; rows of 256 are rounded in strips, and pictures of 16 MiB streamed.
SIZES = [
    (1, 1, 1, 1, 1, 3, 1, 1),
    (2, 3, 7, 5, 9, 3, 1, 1),
    (1, 16, 33, 8, 8, 3, 1, 1),
    (1, 5, 40, 18, 17, 3, 1, 1),
    (3, 6, 10, 9, 20, 3, 2, 1),
    (2, 20, 65, 7, 24, 1, 1, 0),
    (1, 2, 3, 6, 7, 5, 1, 2),
    (1, 600, 20, 4, 6, 3, 1, 1),
    (1, 5, 3, 2, 300, 3, 1, 1),
    (1, 1, 128, 181, 182, 1, 1, 0),
]
# batch, inputs, outputs, height, width. Of a small picture 32 pixels of a row are written together.
SMALL = [
    (1, 1, 1, 1, 1),
    (2, 3, 37, 5, 9),
    (1, 6, 64, 3, 33),
    (1, 5, 32, 2, 300),
    (1, 130, 8, 17, 16),
    (1, 1, 65, 182, 181),
]
STEP, ZERO = 0.03, 121


def _arrays(random, sizes):
    batch, inputs, outputs, height, width, side, _, _ = sizes
    x = 2 * random.standard_normal((batch, inputs, height, width), np.float32)
    weights = random.integers(-127, 128, (outputs, inputs, side, side), dtype=np.int8)
    scales = (random.uniform(0.5, 1.5, outputs) * STEP / np.sqrt(inputs) / 200).astype(np.float32)
    return x, weights, scales, random.standard_normal(outputs, np.float32)


def _node(x, weights, scales, bias, stride, padding, **added):
    """added: the inputs `shift` and `added`, where there are any."""
    totals = weights.sum(axis=(1, 2, 3), dtype=np.int32)
    arrays = {"x": x, "weights": packed_filters(weights), "bias": bias, "scales": by_panel(scales)}
    arrays |= {"totals": by_panel(totals)} | added
    names = [*list(arrays)[:5], *(name if name in added else "" for name in ("shift", "added"))]
    how = {"scale": STEP, "zero": ZERO, "stride": stride, "padding": padding}
    node = helper.make_node("IntegerConv", names, ["y"], domain=OWN, **how)
    return model_of_node(node, arrays), arrays


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_convolution_by_every_set_of_instructions(sets, run, random, sizes):
    arrays = _arrays(random, sizes)
    expected, (model, feed) = KERNEL.reference(*arrays, STEP, ZERO, *sizes[6:]), _node(*arrays, *sizes[6:])
    for each in sets(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=2e-5)
        np.testing.assert_array_equal(one, two)


def test_numbers_beyond_all_steps_are_the_last_one(sets, run, random):
    x, *rest = _arrays(random, (1, 3, 5, 6, 7, 3, 1, 1))
    x[0, 0, 2, :5] = 1e12, -1e12, np.inf, -np.inf, 3e9 * STEP
    expected, (model, feed) = KERNEL.reference(x, *rest, STEP, ZERO, 1, 1), _node(x, *rest, 1, 1)
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], expected, atol=2e-5)


@pytest.mark.parametrize("shifts", [0, 1, 3], ids=["no shift", "a shift for all", "a shift for each image"])
@pytest.mark.parametrize("adds", [False, True])
def test_sums_are_made_before_it_writes(sets, run, random, shifts, adds):
    sizes, more = (3, 6, 37, 5, 7, 3, 1, 1), {}
    arrays = _arrays(random, sizes)
    expected = KERNEL.reference(*arrays, STEP, ZERO, 1, 1)
    if shifts:
        more["shift"] = random.standard_normal((shifts, 37, 1, 1), np.float32)
    if adds:
        more["added"] = random.standard_normal(expected.shape).astype(np.float32)
    model, feed = _node(*arrays, 1, 1, **more)
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], sum(more.values(), expected), atol=2e-5)


def test_the_reference_is_onnxs_words(random):
    x, weights, scales, bias = _arrays(random, (2, 3, 4, 5, 6, 3, 2, 1))
    text = """<ir_version: 10, opset_import: ["" : 20]>
        graph (float[2, 3, 5, 6] x, int8[4, 3, 3, 3] weights, float step, uint8 zero) => (int32[2, 4, 3, 3] y) {
            rounded = QuantizeLinear (x, step, zero)
            y = ConvInteger <pads = [1, 1, 1, 1], strides = [2, 2]> (rounded, weights, zero)
        }"""
    feed = {"x": x, "weights": weights, "step": np.float32(STEP), "zero": np.uint8(ZERO)}
    (product,) = ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, feed)
    expected = product * scales.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    np.testing.assert_allclose(KERNEL.reference(x, weights, scales, bias, STEP, ZERO, 2, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": (np.int8, (1, 3, 3, 2, 32, 4))}, "such channels"),
        ({"weights": (np.int8, (2, 3, 3, 1, 32, 4))}, "such channels"),
        ({"weights": (np.int8, (1, 8, 3, 1, 32, 4))}, "larger than the picture"),
        ({"scales": (np.float32, (2, 32))}, "such channels"),
        ({"totals": (np.int32, (1, 16))}, "such channels"),
        ({"shift": (np.float32, (2, 7, 1, 1))}, "for each channel"),
        ({"added": (np.float32, (1, 7, 5, 8))}, "another shape"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_an_error(able, run, random, change, message):
    more = {"shift": np.zeros((1, 7, 1, 1), np.float32), "added": np.zeros((1, 7, 5, 9), np.float32)}
    model, feed = _node(*_arrays(random, (1, 3, 7, 5, 9, 3, 1, 1)), 1, 1, **more)
    ((name, (dtype, shape)),) = change.items()
    give(model, feed, name, np.zeros(shape, dtype))
    with pytest.raises(Exception, match=message):
        run(model, feed)


def _upsampled_node(random, sizes, **added):
    batch, inputs, outputs, height, width = sizes
    x = 2 * random.standard_normal((batch, inputs, height, width), np.float32)
    filters = random.integers(-127, 128, (4, outputs, inputs, 2, 2), dtype=np.int8)
    scales = (random.uniform(0.5, 1.5, (4, outputs)) * STEP / np.sqrt(inputs) / 200).astype(np.float32)
    arrays = {
        "x": x,
        "weights": panels_of([packed_filters(each) for each in filters]),
        "bias": random.standard_normal(outputs, np.float32),
        "scales": panels_of([by_panel(each) for each in scales]),
        "totals": panels_of([by_panel(totals_of(each)) for each in filters]),
    } | added
    names = [*list(arrays)[:5], *(name if name in added else "" for name in ("shift", "added"))]
    how = {"scale": STEP, "zero": ZERO, "stride": 1, "padding": 1, "upsampled": 1}
    node = helper.make_node("IntegerConv", names, ["y"], domain=OWN, **how)
    expected = UPSAMPLE.reference(x, filters, scales, arrays["bias"], STEP, ZERO)
    return model_of_node(node, arrays), arrays, expected


@pytest.mark.parametrize("sizes", SMALL, ids=str)
def test_an_upsampled_picture_is_convolved_by_every_set_of_instructions(sets, run, random, sizes):
    model, feed, expected = _upsampled_node(random, sizes)
    for each in sets(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=2e-5)
        np.testing.assert_array_equal(one, two)


def test_sums_are_made_of_an_upsampled_picture_too(sets, run, random):
    more = {
        "shift": random.standard_normal((2, 37, 1, 1), np.float32),
        "added": random.standard_normal((2, 37, 10, 18), np.float32),
    }
    model, feed, expected = _upsampled_node(random, (2, 3, 37, 5, 9), **more)
    for each in sets(model):
        np.testing.assert_allclose(run(each, feed)["y"], sum(more.values(), expected), atol=2e-5)


@pytest.mark.parametrize(
    "change",
    [{"weights": (np.int8, (8, 3, 3, 1, 32, 4))}, {"weights": (np.int8, (2, 2, 2, 1, 32, 4))}],
    ids=["filters of 3x3", "filters of one kind"],
)
def test_an_upsampled_picture_wants_four_kinds_of_filters_of_2x2(able, run, random, change):
    model, feed, _ = _upsampled_node(random, (2, 3, 37, 5, 9))
    ((name, (dtype, shape)),) = change.items()
    give(model, feed, name, np.zeros(shape, dtype))
    with pytest.raises(Exception, match=r"such channels|2x2"):
        run(model, feed)


def test_the_reference_of_an_upsampled_picture_is_the_convolution_behind_resize(random):
    x = (random.integers(0, 256, (2, 3, 4, 5)) - ZERO).astype(np.float32) * np.float32(STEP)
    weights = random.standard_normal((6, 3, 3, 3), np.float32)
    bias = random.standard_normal(6, np.float32)
    large = np.pad(x.repeat(2, axis=2).repeat(2, axis=3), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(large, (3, 3), axis=(2, 3))
    expected = np.einsum("bihwrc,oirc->bohw", windows, weights) + bias.reshape(-1, 1, 1)
    filters, scales = zip(*map(rounded_filters, phase_weights(weights)), strict=True)
    made = UPSAMPLE.reference(x, np.stack(filters), np.float32(STEP) * np.stack(scales), bias, STEP, ZERO)
    assert np.abs(made - expected).std() < 0.004 * expected.std()


def _model(random, *, strides="[1, 1]", size=8, zero=0):
    """A convolution between roundings, then a number for each channel and a residual."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[1, 6, 8, 8] x, float[1, 40, 1, 1] shift, float[1, 40, {size}, {size}] residual)
            => (float[1, 40, {size}, {size}] y) {{
            in_8 = QuantizeLinear (x, step, middle)
            given = DequantizeLinear (in_8, step, middle)
            weight = DequantizeLinear <axis = 0> (integers, scale, around)
            bias = DequantizeLinear <axis = 0> (whole, bias_scale)
            made = Conv <pads = [1, 1, 1, 1], strides = {strides}> (given, weight, bias)
            out_8 = QuantizeLinear (made, out_step, middle)
            back = DequantizeLinear (out_8, out_step, middle)
            shifted = Add (back, shift)
            y = Add (residual, shifted)
        }}"""
    model = onnx.parser.parse_model(text)
    constants = {
        "step": np.array(STEP, np.float32),
        "middle": np.array(128, np.uint8),
        "out_step": np.array(0.05, np.float32),
        "integers": random.integers(-127, 128, (40, 6, 3, 3), dtype=np.int8),
        "scale": random.uniform(0.001, 0.002, 40).astype(np.float32),
        "around": np.full(40, zero, np.int8),
        "whole": random.integers(-9000, 9000, 40, dtype=np.int32),
    }
    constants["bias_scale"] = constants["scale"] * np.float32(STEP)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


@pytest.mark.parametrize(("strides", "size"), [("[1, 1]", 8), ("[2, 2]", 4)])
def test_a_convolution_between_roundings_becomes_one_node_with_what_is_added(able, run, random, strides, size):
    model = _model(random, strides=strides, size=size)
    feed = {
        "x": random.standard_normal((1, 6, 8, 8), np.float32),
        "shift": random.standard_normal((1, 40, 1, 1), np.float32),
        "residual": random.standard_normal((1, 40, size, size), np.float32),
    }
    before = run(ir.to_proto(model), feed)["y"]
    (node,) = [node for node in model.graph if KERNEL.matches(node, Shapes())]
    assert {each.op_type for each in KERNEL.cluster(node)} == {"Conv", "QuantizeLinear", "DequantizeLinear", "Add"}
    KERNEL.rewrite(node, model.graph)
    RemoveUnusedNodesPass()(model)
    model.opset_imports.update(DOMAINS)
    assert [each.op_type for each in model.graph] == ["IntegerConv"]
    off = np.abs(run(ir.to_proto(model), feed)["y"] - before)
    assert 0.001 < off.max() < 0.026  # half of a step of the output, which is not rounded any more


@pytest.mark.parametrize("least", [0, 7])
def test_a_relu_goes_where_what_is_below_0_becomes_the_least_byte(able, run, random, least):
    model = _model(random)
    x, middle = model.graph.inputs[0], model.graph.initializers["middle"]
    middle.const_value = ir.tensor(np.array(least, np.uint8))
    first = next(use.node for use in x.uses())
    relu = ir.node("Relu", [x], outputs=[ir.Value(name="relu", shape=x.shape, type=x.type)])
    model.graph.insert_before(first, relu)
    first.replace_input_with(0, relu.outputs[0])
    feed = {
        "x": random.standard_normal((1, 6, 8, 8), np.float32),
        "shift": random.standard_normal((1, 40, 1, 1), np.float32),
        "residual": random.standard_normal((1, 40, 8, 8), np.float32),
    }
    (node,) = [node for node in model.graph if KERNEL.matches(node, Shapes())]
    before = run(ir.to_proto(model), feed)["y"]
    made = node.outputs[0]
    for use in tuple(next(use.node for use in made.uses()).outputs[0].uses()):
        use.node.outputs[0].replace_all_uses_with(made)  # so that nothing else is rounded anew
    whole = run(ir.to_proto(model), feed)["y"]
    KERNEL.rewrite(node, model.graph)
    RemoveUnusedNodesPass()(model)
    model.opset_imports.update(DOMAINS)
    assert ("Relu" in [each.op_type for each in model.graph]) == (least > 0)
    np.testing.assert_allclose(run(ir.to_proto(model), feed)["y"], whole, atol=2e-5)
    assert np.abs(whole - before).max() > 1e-4


def test_a_convolution_of_an_upsampled_picture_takes_resize_along(able, run, random):
    model = _model(random, size=8)
    small = model.graph.inputs[0]
    small.shape = ir.Shape((1, 6, 4, 4))
    (use,) = small.uses()
    sizes = ir.Value(name="sizes", const_value=ir.tensor(np.array([1, 1, 2, 2], np.float32)))
    model.graph.register_initializer(sizes)
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    large = ir.Value(name="large", shape=ir.Shape((1, 6, 8, 8)), type=small.type)
    resize = ir.node("Resize", [small, None, sizes], how, outputs=[large])
    model.graph.insert_before(use.node, resize)
    use.node.replace_input_with(0, large)
    feed = {
        "x": random.standard_normal((1, 6, 4, 4), np.float32),
        "shift": random.standard_normal((1, 40, 1, 1), np.float32),
        "residual": random.standard_normal((1, 40, 8, 8), np.float32),
    }
    before = run(ir.to_proto(model), feed)["y"]
    (node,) = [node for node in model.graph if UPSAMPLE.matches(node, Shapes())]
    taken = {"Resize", "Conv", "QuantizeLinear", "DequantizeLinear", "Add"}
    assert {each.op_type for each in UPSAMPLE.cluster(node)} == taken
    UPSAMPLE.rewrite(node, model.graph)
    RemoveUnusedNodesPass()(model)
    model.opset_imports.update(DOMAINS)
    assert [each.op_type for each in model.graph] == ["IntegerConv"]
    off = np.abs(run(ir.to_proto(model), feed)["y"] - before)
    assert 0.001 < off.max() < 0.05  # half of a step of the output, and weights that are rounded anew


def test_only_an_upsampled_picture_is_taken_for_one(random):
    assert not [node for node in _model(random).graph if UPSAMPLE.matches(node, Shapes())]


def test_the_rounding_that_another_convolution_wants_stays(random):
    model = _model(random)
    back = next(node.outputs[0] for node in model.graph if node.outputs[0].name == "back")
    model.graph.append(ir.node("Conv", [back, model.graph.initializers["integers"]], name="next"))
    (node,) = [node for node in model.graph if KERNEL.matches(node, Shapes())]
    assert KERNEL.cluster(node) == (node,)


@pytest.mark.parametrize("zero", [0, 3])
def test_weights_around_another_number_than_0_are_left_alone(random, zero):
    model = _model(random, zero=zero)
    assert [KERNEL.matches(node, Shapes()) for node in model.graph if node.op_type == "Conv"] == [zero == 0]
