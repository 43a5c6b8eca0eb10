"""A 1x1 convolution as one node of our own: what it means, at odd sizes, by every set of instructions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from own_nodes import conv_arrays, conv_node, give

from tintype.kernels.graph import choice
from tintype.kernels.native.own_conv import OUTPUTS
from tintype.kernels.native.pointwise import NativePointwise, pointwise_weights

KERNEL = NativePointwise()
# batch, inputs, outputs, height, width. Panels are of 8 to 32 pixels, blocks of 10 outputs, tasks of 16 and 8 of them.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 7, 5, 9),
    (1, 16, 20, 8, 8),
    (3, 7, 10, 4, 40),
    (1, 17, 31, 33, 18),
    (1, 33, 171, 25, 41),
]


def _arrays(random, sizes):
    return conv_arrays(random, sizes, 1)


def _node(x, weight, bias, **added):
    return conv_node("PointwiseConv", x, pointwise_weights(weight), bias, **added)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_convolution_by_every_set_of_instructions(instructions, run, random, sizes):
    x, weight, bias = _arrays(random, sizes)
    expected, (model, feed) = KERNEL.reference(x, weight, bias), _node(x, weight, bias)
    for each in instructions(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=2e-5)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("shifts", [0, 1, 3], ids=["no shift", "a shift for all", "a shift for each image"])
@pytest.mark.parametrize("is_added", [False, True])
def test_what_is_added_is_added(instructions, run, random, shifts, is_added):
    x, weight, bias = _arrays(random, (3, 5, 37, 9, 15))
    added = {"shift": random.standard_normal((shifts, 37, 1, 1), np.float32)} if shifts else {}
    if is_added:
        added["added"] = random.standard_normal((3, 37, 9, 15), np.float32)
    expected = KERNEL.reference(x, weight, bias) + sum(array.astype(np.float64) for array in added.values())
    model, feed = _node(x, weight, bias, **added)
    for each in instructions(model):
        np.testing.assert_allclose(run(each, feed, 2)["y"], expected, atol=2e-5)


def test_the_reference_is_what_onnx_runtime_computes(model_of, applied, instructions, random):
    x, weight, bias = _arrays(random, (2, 16, 24, 9, 12))
    node = helper.make_node("Conv", ["x", "weight", "bias"], ["y"], name="layer")
    model = model_of([node], {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], {"weight": weight, "bias": bias})
    result = applied(model, {"x": x}, KERNEL)
    assert result.operators == ["PointwiseConv"]
    np.testing.assert_allclose(result.before["y"], KERNEL.reference(x, weight, bias), atol=1e-5)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


def test_it_takes_the_sums_behind_along(model_of, applied, instructions, random):
    x, weight, _ = _arrays(random, (2, 16, 24, 9, 12))
    feed = {"x": x, "image": random.standard_normal((2, 24, 9, 12), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "weight"], ["c"], name="layer")]
    nodes.append(helper.make_node("Add", ["image", "c"], ["y"]))
    inputs = {name: (TensorProto.FLOAT, list(array.shape)) for name, array in feed.items()}
    result = applied(model_of(nodes, inputs, ["y"], {"weight": weight}), feed, KERNEL)
    assert result.operators == ["PointwiseConv"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


@pytest.mark.parametrize("cut", [np.s_[:1], np.s_[:, :2], np.s_[..., :9]], ids=str)
def test_weights_of_other_channels_are_an_error(instructions, run, random, cut):
    model, feed = _node(*_arrays(random, (1, 3, OUTPUTS + 1, 5, 9)))
    give(model, feed, "weights", np.ascontiguousarray(feed["weights"][cut]))
    with pytest.raises(Exception, match="such channels"):
        run(model, feed)


def test_nan_spreads_over_its_pixel_and_no_further(instructions, run, random):
    x, weight, bias = _arrays(random, (1, 4, 13, 6, 7))
    x[0, 1, 2, 3] = np.nan
    model, feed = _node(x, weight, bias)
    for each in instructions(model):
        lost = np.isnan(run(each, feed)["y"])
        assert lost[0, :, 2, 3].all()
        assert lost.sum() == 13


@pytest.mark.parametrize(
    ("channels", "side", "cells", "pads", "strides"),
    [(8, 16, 1, 0, 1), (16, 3, 1, 0, 1), (16, 16, 1, 1, 1), (16, 16, 1, 0, 2), (16, 16, 3, 1, 1)],
    ids=["few channels", "few pixels", "padded", "strided", "3x3"],
)
def test_other_convolutions_are_left_alone(model_of, random, channels, side, cells, pads, strides):
    weight = random.standard_normal((16, channels, cells, cells), np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"], name="layer", pads=[pads] * 4, strides=[strides] * 2)]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [1, channels, side, side])}, ["y"], {"weight": weight})
    assert list(choice.layers(ir.from_proto(model).graph, [KERNEL])) == []
