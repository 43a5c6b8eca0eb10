"""A 3x3 convolution as one node of our own: what it means, at odd sizes, by every set of instructions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from own_nodes import conv_arrays, conv_node, give

from tintype.engine.device import native
from tintype.kernels.graph import choice
from tintype.kernels.native.own_conv import OUTPUTS
from tintype.kernels.native.winograd import (
    FEW_TILES,
    NativeWinograd,
    NativeWinogradFew,
    NativeWinogradLean,
    few_packed_weights,
    packed_weights,
)

KERNEL, FEW, LEAN = NativeWinograd(), NativeWinogradFew(), NativeWinogradLean()
PACKED = {"transformed": packed_weights, "as they are": few_packed_weights}
# batch, inputs, outputs, height, width. Tiles are of 4 by 4; panels of 4 to 32 of them; blocks of 10 or 32 outputs.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 7, 5, 9),
    (1, 16, 20, 8, 8),
    (1, 5, 11, 16, 16),
    (3, 7, 10, 4, 40),
    (1, 17, 31, 33, 18),
    (1, 1200, 20, 64, 65),  # in strips
]


def _arrays(random, sizes):
    return conv_arrays(random, sizes, 3)


def _convolved(x, weight, bias):
    """By nine products in float64."""
    height, width = x.shape[2:]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros((len(x), len(weight), height, width)) + bias.reshape(-1, 1, 1)
    for row in range(3):
        for column in range(3):
            seen = padded[:, :, row : row + height, column : column + width]
            y += np.einsum("oc,nchw->nohw", weight[:, :, row, column].astype(np.float64), seen, optimize=True)
    return y


def _node(x, weight, bias, packed=packed_weights, **added):
    return conv_node("WinogradConv", x, packed(weight), bias, **added)


@pytest.mark.parametrize("weights", PACKED)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_it_is_the_convolution_by_every_set_of_instructions(instructions, run, random, sizes, weights):
    x, weight, bias = _arrays(random, sizes)
    expected, (model, feed) = _convolved(x, weight, bias), _node(x, weight, bias, PACKED[weights])
    for each in instructions(model):
        one, two = run(each, feed, 1)["y"], run(each, feed, 2)["y"]
        np.testing.assert_allclose(one, expected, atol=2e-4)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("weights", PACKED)
@pytest.mark.parametrize("shifts", [0, 1, 3], ids=["no shift", "a shift for all", "a shift for each image"])
@pytest.mark.parametrize("is_added", [False, True])
def test_what_is_added_is_added(instructions, run, random, weights, shifts, is_added):
    x, weight, bias = _arrays(random, (3, 5, 37, 9, 16))
    added = {"shift": random.standard_normal((shifts, 37, 1, 1), np.float32)} if shifts else {}
    if is_added:
        added["added"] = random.standard_normal((3, 37, 9, 16), np.float32)
    expected = _convolved(x, weight, bias) + sum(array.astype(np.float64) for array in added.values())
    model, feed = _node(x, weight, bias, PACKED[weights], **added)
    for each in instructions(model):
        np.testing.assert_allclose(run(each, feed, 2)["y"], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("shift", (3, 7, 1, 1)),
        ("shift", (2, 6, 1, 1)),
        ("shift", (7,)),
        ("added", (1, 7, 5, 9)),
        ("added", (2, 7, 9, 5)),
    ],
)
@pytest.mark.usefixtures("library")
def test_sums_of_other_shapes_are_an_error(run, random, name, shape):
    x, weight, bias = _arrays(random, (2, 3, 7, 5, 9))
    with pytest.raises(Exception, match=r"the shift has to have|another shape"):
        run(*_node(x, weight, bias, **{name: np.zeros(shape, np.float32)}))


@pytest.mark.parametrize("sizes", SIZES[1:4], ids=str)
def test_the_reference_is_the_convolution(random, sizes):
    arrays = _arrays(random, sizes)
    np.testing.assert_allclose(KERNEL.reference(*arrays), _convolved(*arrays), atol=1e-10)


@pytest.mark.parametrize("weights", PACKED)
def test_nan_spreads_as_far_as_its_tile_and_no_further(instructions, run, random, weights):
    x, weight, bias = _arrays(random, (1, 4, 3, 24, 24))
    x[0, 1, 9, 9] = np.nan
    model, feed = _node(x, weight, bias, PACKED[weights])
    for each in instructions(model):
        lost = np.isnan(run(each, feed)["y"]).any((0, 1))
        assert lost[8:11, 8:11].all()
        assert not lost[:4].any()
        assert not lost[16:].any()


def test_the_output_has_its_shape_in_the_graph(instructions, random):
    options = onnxruntime.SessionOptions()
    native.register(options)
    model, _ = _node(*_arrays(random, (2, 3, 7, 5, 9)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [2, 7, 5, 9]


@pytest.mark.parametrize("cut", [np.s_[:35], np.s_[:, :1], np.s_[:, :, :2], np.s_[..., :9]], ids=str)
def test_weights_of_other_channels_are_an_error(instructions, run, random, cut):
    model, feed = _node(*_arrays(random, (1, 3, OUTPUTS + 1, 5, 9)))
    give(model, feed, "weights", np.ascontiguousarray(feed["weights"][cut]))
    with pytest.raises(Exception, match="such channels"):
        run(model, feed)


@pytest.mark.parametrize(
    ("cut", "weights"),
    [(np.s_[:1], "as they are"), (np.s_[:, :2], "as they are"), (np.s_[:, :, :8], "as they are")],
    ids=str,
)
@pytest.mark.usefixtures("library")
def test_filters_of_other_channels_are_an_error(run, random, cut, weights):
    model, feed = _node(*_arrays(random, (1, 3, 33, 5, 9)), PACKED[weights])
    give(model, feed, "weights", np.ascontiguousarray(feed["weights"][cut]))
    with pytest.raises(Exception, match="such channels"):
        run(model, feed)


@pytest.mark.parametrize(("kernel", "side"), [(KERNEL, 24), (FEW, 9), (LEAN, 24)], ids=["many tiles", "few", "lean"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_takes_the_place_of_a_convolution(instructions, model_of, applied, random, with_bias, kernel, side):
    x, weight, bias = _arrays(random, (2, 16, 24, side, side + 3))
    names = ["x", "weight", "bias"][: 2 + with_bias]
    nodes = [helper.make_node("Conv", names, ["y"], name="layer", pads=[1, 1, 1, 1])]
    constants = {"weight": weight, "bias": bias} if with_bias else {"weight": weight}
    result = applied(model_of(nodes, {"x": (TensorProto.FLOAT, list(x.shape))}, ["y"], constants), {"x": x}, kernel)
    assert result.operators == ["WinogradConv"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-4)


SUMS = [  # name, shape of what is added, or None for what is not a sum of its own
    ([("shift", (2, 24, 1, 1))], ["WinogradConv"]),
    ([("image", (2, 24, 9, 12))], ["WinogradConv"]),
    ([("shift", (1, 24, 1, 1)), ("image", (2, 24, 9, 12))], ["WinogradConv"]),
    ([("image", (2, 24, 9, 12)), ("shift", (2, 24, 1, 1))], ["WinogradConv", "Add"]),
    ([("image", (2, 24, 9, 12)), ("other", (2, 24, 9, 12))], ["WinogradConv", "Add"]),
    ([("row", (2, 24, 1, 12))], ["WinogradConv", "Add"]),
]


@pytest.mark.parametrize(("added", "operators"), SUMS, ids=lambda each: str([str(part) for part in each]))
def test_it_takes_the_sums_behind_along(instructions, model_of, applied, random, added, operators):
    x, weight, bias = _arrays(random, (2, 16, 24, 9, 12))
    nodes, last = [helper.make_node("Conv", ["x", "weight", "bias"], ["c"], name="layer", pads=[1, 1, 1, 1])], "c"
    feed = {"x": x}
    for name, shape in added:
        feed[name] = random.standard_normal(shape, np.float32)
        nodes.append(helper.make_node("Add", [name, last], [f"{last}+"]))
        last += "+"
    inputs = {name: (TensorProto.FLOAT, list(array.shape)) for name, array in feed.items()}
    result = applied(model_of(nodes, inputs, [last], {"weight": weight, "bias": bias}), feed, FEW)
    assert result.operators == operators
    np.testing.assert_allclose(result.after[last], result.before[last], atol=1e-4)


def test_a_convolution_that_others_read_too_keeps_its_sum_beside_it(instructions, model_of, applied, random):
    x, weight, bias = _arrays(random, (1, 16, 24, 9, 12))
    nodes = [helper.make_node("Conv", ["x", "weight", "bias"], ["c"], name="layer", pads=[1, 1, 1, 1])]
    nodes += [helper.make_node("Add", ["c", "image"], ["y"]), helper.make_node("Add", ["c", "c"], ["twice"])]
    feed = {"x": x, "image": random.standard_normal((1, 24, 9, 12), np.float32)}
    inputs = {name: (TensorProto.FLOAT, list(array.shape)) for name, array in feed.items()}
    result = applied(model_of(nodes, inputs, ["y", "twice"], {"weight": weight, "bias": bias}), feed, FEW)
    assert sorted(result.operators) == ["Add", "Add", "WinogradConv"]


@pytest.mark.parametrize(("batch", "side", "few"), [(1, 16, True), (2, 16, True), (3, 16, False), (1, 24, False)])
def test_which_of_them_may_take_a_convolution_goes_by_its_tiles(model_of, random, batch, side, few):
    assert FEW_TILES == 2 * (16 // 4) ** 2
    weight = random.standard_normal((16, 16, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"], name="layer", pads=[1] * 4)]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [batch, 16, side, side])}, ["y"], {"weight": weight})
    (layer,) = choice.layers(ir.from_proto(model).graph, [KERNEL, FEW, LEAN])
    assert layer.kernels == ((FEW,) if few else (KERNEL, LEAN))


def test_the_lean_one_takes_a_fourth_of_the_weights(model_of, random):
    weight = random.standard_normal((320, 16, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"], name="layer", pads=[1] * 4)]
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, [1, 16, 24, 24])}, ["y"], {"weight": weight}))
    (layer,) = choice.layers(model.graph, [KERNEL, LEAN])
    sizes = {way: choice.weight_bytes(choice.model_of(layer, way, model.opset_imports)) for way in layer.ways}
    bias = 320 * 4
    assert sizes["native_winograd_lean"] == sizes["as_is"] + bias
    assert sizes["native_winograd"] == 4 * sizes["as_is"] + bias


@pytest.mark.parametrize(
    ("channels", "side", "pads", "strides"),
    [(8, 16, [1] * 4, [1, 1]), (16, 3, [1] * 4, [1, 1]), (16, 16, [0] * 4, [1, 1]), (16, 16, [1] * 4, [2, 2])],
)
def test_other_convolutions_are_left_alone(model_of, random, channels, side, pads, strides):
    weight = random.standard_normal((16, channels, 3, 3), np.float32)
    nodes = [helper.make_node("Conv", ["x", "weight"], ["y"], name="layer", pads=pads, strides=strides)]
    model = model_of(nodes, {"x": (TensorProto.FLOAT, [1, channels, side, side])}, ["y"], {"weight": weight})
    assert list(choice.layers(ir.from_proto(model).graph, [KERNEL, FEW, LEAN])) == []
