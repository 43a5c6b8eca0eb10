"""Weights that are stored as float16 and stay so: the same sums to the last bit, in half the bytes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from own_nodes import conv_node, give, model_of_node

from tintype.engine.build.measure import AS_IS, Way, fastest, likely_ways
from tintype.kernels.base import OWN
from tintype.kernels.graph import choice
from tintype.kernels.graph.priors import Priors, Row, Timed
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN
from tintype.kernels.native.linear import MOST_GATED_INPUTS, NativeGeglu, NativeLinear, packed_weights
from tintype.kernels.native.pointwise import NativePointwise
from tintype.kernels.native.winograd import NativeWinograd, NativeWinogradFew, few_packed_weights
from tintype.kernels.native.winograd import packed_weights as transformed_weights

# rows, inputs, outputs: rests of each; several panels a task, several tasks; more inputs than a sum is made of at once
LAYERS = [(1, 1, 1), (13, 64, 17), (205, 40, 480), (200, 1280, 70), (9, 1400, 100)]
# batch, inputs, outputs, height, width: inputs are transformed by 32, outputs lie by 32
PICTURES = [(1, 3, 7, 5, 9), (2, 70, 40, 8, 8), (1, 32, 33, 16, 16), (3, 5, 7, 36, 40)]


def _halves(random, shape):
    return (random.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float16)


def _same_by_every_set(instructions, run, model, feed):
    """Runs the node by every set with its float16 weights, and with the same numbers as floats."""
    halves = feed["weights"]
    assert halves.dtype == np.float16
    given = [run(each, feed, threads)["y"] for each in instructions(model) for threads in (1, 2)]
    give(model, feed, "weights", halves.astype(np.float32))
    expected = [run(each, feed, threads)["y"] for each in instructions(model) for threads in (1, 2)]
    assert len(given) >= 2  # of the one set that an old processor has, with one thread and with two
    for one, other in zip(given, expected, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("sizes", "activation"),
    [
        (sizes, each)
        for sizes in LAYERS
        for each in (PLAIN, GELU, GEGLU)
        if each != GEGLU or sizes[1] <= MOST_GATED_INPUTS
    ],
    ids=str,
)
def test_a_layer_is_the_one_of_floats(instructions, run, random, sizes, activation):
    rows, inputs, outputs = sizes
    parts = 2 if activation == GEGLU else 1
    arrays = {
        "x": random.standard_normal((rows, inputs), np.float32),
        "weights": packed_weights(*_halves(random, (parts, inputs, outputs))),
        "bias": random.standard_normal((parts, outputs), np.float32),
    }
    node = helper.make_node("LinearLayer", list(arrays), ["y"], domain=OWN, activation=activation)
    _same_by_every_set(instructions, run, model_of_node(node, arrays), arrays)


@pytest.mark.parametrize("sizes", PICTURES, ids=str)
def test_a_convolution_of_few_tiles_is_the_one_of_floats(instructions, run, random, sizes):
    batch, inputs, outputs, height, width = sizes
    weight = _halves(random, (outputs, inputs, 3, 3))
    x = random.standard_normal((batch, inputs, height, width), np.float32)
    bias = random.standard_normal(outputs, np.float32)
    _same_by_every_set(instructions, run, *conv_node("WinogradConv", x, few_packed_weights(weight), bias))


def test_every_finite_number_becomes_the_same_float(instructions, run):
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = numbers[np.isfinite(numbers)]
    assert len(numbers) == 2 * 31 * 2**10
    x = np.ones((1, 1), np.float32)
    arrays = {"x": x, "weights": packed_weights(numbers[None]), "bias": np.zeros((1, len(numbers)), np.float32)}
    model = model_of_node(helper.make_node("LinearLayer", list(arrays), ["y"], domain=OWN), arrays)
    for each in instructions(model):
        np.testing.assert_array_equal(run(each, arrays)["y"][0], numbers.astype(np.float32))


@pytest.mark.parametrize("kind", [np.float64, np.int8])
@pytest.mark.usefixtures("library")
def test_weights_of_another_type_are_an_error(run, random, kind):
    x, bias = random.standard_normal((3, 5), np.float32), np.zeros((1, 7), np.float32)
    arrays = {"x": x, "weights": packed_weights(np.zeros((5, 7), kind)), "bias": bias}
    with pytest.raises(Exception, match="of another type"):
        run(model_of_node(helper.make_node("LinearLayer", list(arrays), ["y"], domain=OWN), arrays), arrays)


@pytest.mark.parametrize(("packed", "kind"), [(few_packed_weights, np.float64), (transformed_weights, np.float16)])
@pytest.mark.usefixtures("library")
def test_filters_of_another_type_are_an_error(run, random, packed, kind):
    weights = packed(random.standard_normal((7, 3, 3, 3)).astype(np.float32)).astype(kind)
    x = random.standard_normal((1, 3, 8, 8), np.float32)
    with pytest.raises(Exception, match="of another type"):
        run(*conv_node("WinogradConv", x, weights, np.zeros(7, np.float32)))


def _stored(name="weight"):
    return helper.make_node("Cast", [name], [f"{name}_floats"], to=TensorProto.FLOAT)


def _graph_of(model_of, nodes, shape, weights, cast=("weight",)):
    """A graph whose weights are stored as float16 behind a Cast."""
    return model_of([*map(_stored, cast), *nodes], {"x": (TensorProto.FLOAT, list(shape))}, ["y"], weights)


def _matmul(model_of, random, turned=0, weight=None):
    weight = _halves(random, (600, 512)) if weight is None else weight  # as floats above the 1 MiB of other stores
    stored = weight.T if turned else weight
    nodes = [helper.make_node("Gemm", ["x", "weight_floats"], ["y"], name="layer", transB=turned)]
    return _graph_of(model_of, nodes, (16, 600), {"weight": np.ascontiguousarray(stored)})


def _conv(model_of, random, side, cells=3):
    weight = _halves(random, (40, 24, cells, cells))
    nodes = [helper.make_node("Conv", ["x", "weight_floats"], ["y"], name="layer", pads=[cells // 2] * 4)]
    return _graph_of(model_of, nodes, (2, 24, side, side), {"weight": weight})


def _of_own_nodes(graph, kernel):
    """The type of the weights of the one node that a kernel makes."""
    (layer,) = choice.layers(graph, [kernel])
    choice.apply(layer, kernel.name, graph)
    (node,) = [node for node in graph if node.domain == OWN]
    return node.inputs[1].const_value.dtype


@pytest.mark.parametrize("turned", [0, 1])
def test_a_layer_keeps_them(model_of, applied, instructions, random, turned):
    model = _matmul(model_of, random, turned)
    result = applied(model, {"x": random.standard_normal((16, 600), np.float32)}, NativeLinear())
    assert result.operators == ["LinearLayer"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-5)
    assert _of_own_nodes(ir.from_proto(model).graph, NativeLinear()) == ir.DataType.FLOAT16


@pytest.mark.parametrize("both", [True, False])
def test_a_gated_layer_keeps_them_where_both_are_stored_so(model_of, instructions, random, both):
    value, gate = _halves(random, (2, 16, 24))
    names = ("weight", "gate") if both else ("weight",)
    gate_name = "gate_floats" if both else "gate"
    nodes = [
        helper.make_node("MatMul", ["x", "weight_floats"], ["value"], name="layer"),
        helper.make_node("MatMul", ["x", gate_name], ["g"], name="gate"),
        helper.make_node("Gelu", ["g"], ["gelu"]),
        helper.make_node("Mul", ["value", "gelu"], ["y"]),
    ]
    weights = {"weight": value, "gate": gate if both else gate.astype(np.float32)}
    graph = ir.from_proto(_graph_of(model_of, nodes, (9, 16), weights, names)).graph
    expected = ir.DataType.FLOAT16 if both else ir.DataType.FLOAT
    assert _of_own_nodes(graph, NativeGeglu()) == expected


@pytest.mark.parametrize(
    ("kernel", "side", "cells", "kept"),
    [(NativeWinogradFew(), 8, 3, True), (NativeWinograd(), 32, 3, False), (NativePointwise(), 8, 1, False)],
    ids=["few tiles", "transformed", "1x1"],
)
def test_convolutions_keep_them_where_their_filters_stay_as_they_are(
    model_of, applied, instructions, random, kernel, side, cells, kept
):
    model = _conv(model_of, random, side, cells)
    result = applied(model, {"x": random.standard_normal((2, 24, side, side), np.float32)}, kernel)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=2e-4)
    expected = ir.DataType.FLOAT16 if kept else ir.DataType.FLOAT
    assert _of_own_nodes(ir.from_proto(model).graph, kernel) == expected


@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_what_is_no_number_is_made_float(model_of, instructions, random, odd):
    weight = _halves(random, (600, 512))
    weight[3, 4] = odd
    assert _of_own_nodes(ir.from_proto(_matmul(model_of, random, weight=weight)).graph, NativeLinear()) == (
        ir.DataType.FLOAT
    )


def test_what_they_take_is_known_before_it_is_measured_and_after(model_of, instructions, random):
    model = ir.from_proto(_matmul(model_of, random))
    (layer,) = choice.layers(model.graph, [NativeLinear()])
    sizes = {way: choice.weight_bytes(choice.model_of(layer, way, model.opset_imports)) for way in layer.ways}
    assert sizes == {
        AS_IS: 600 * 512 * 4,
        "native_linear": 600 * 512 * 2 + 512 * 4,
    }  # ONNX Runtime makes floats of them
    timed = {AS_IS: Timed(1.0, 4.0, 200.0), "native_linear": Timed(1.0, 4.0, 120.0)}
    ways = likely_ways(layer, Priors("avx2", 1, (Row(layer.kind, layer.size, timed),)))
    assert {name: way.weight_bytes for name, way in ways.items()} == {
        AS_IS: 600 * 512 * 4,
        "native_linear": 600 * 512 * 2,
    }


@pytest.mark.parametrize(("seconds", "best"), [(1.03, "small"), (1.09, "small"), (1.12, AS_IS)])
def test_half_the_weights_are_worth_a_tenth_of_the_time(seconds, best):
    ways = {AS_IS: Way(1.0, 4000, 200.0), "small": Way(seconds, 2080, 120.0), "little smaller": Way(1.05, 3000, 120.0)}
    assert fastest(ways, ()) == best
