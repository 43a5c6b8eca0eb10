"""Convolutions of 8-bit integers that hand bytes to one another, and take norms and ReLUs along: the same picture."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.kernels.base import OWN
from tintype.kernels.graph.segments import cut
from tintype.kernels.native.integer_conv import by_panel, packed_filters, panels_of, totals_of
from tintype.kernels.native.joined_convs import JoinedIntegerConvs


class Graph:
    """Nodes of our own between x and y, with the weights that they have."""

    def __init__(self, random, shape):
        self.random, self.shape, self.nodes, self.weights, self.inputs = random, shape, [], {}, {"x": shape}

    def conv(self, source, name, shape, side=3, step=0.03, zero=121, shift="", added="", **how):
        """shape: of the output; how: `upsampled`."""
        inputs, outputs = self.of[source][1], shape[1]
        kinds = 4 if how else 1
        side = 2 if how else side
        filters = self.random.integers(-127, 128, (kinds, outputs, inputs, side, side), dtype=np.int8)
        scales = self.random.uniform(0.5, 1.5, (kinds, outputs)).astype(np.float32) * 0.0004 / np.sqrt(inputs * side)
        self.weights |= {
            f"{name}_weight": panels_of([packed_filters(each) for each in filters]),
            f"{name}_bias": self.random.standard_normal(outputs, np.float32),
            f"{name}_scale": panels_of([by_panel(each) for each in scales.astype(np.float32)]),
            f"{name}_totals": panels_of([by_panel(totals_of(each)) for each in filters]),
        }
        given = [source, *(f"{name}_{each}" for each in ("weight", "bias", "scale", "totals")), shift, added]
        how |= {"scale": step, "zero": zero, "stride": 1, "padding": 1 if how else side // 2}
        return self._add("IntegerConv", given, name, shape, OWN, **how)

    def norm(self, source, name, silu):
        channels = self.of[source][1]
        for each in ("weight", "bias"):
            self.weights[f"{name}_{each}"] = self.random.standard_normal(channels, np.float32)
        given = [source, f"{name}_weight", f"{name}_bias"]
        return self._add("GroupNormSilu", given, name, self.of[source], OWN, groups=2, epsilon=1e-5, silu=silu)

    def plain(self, operator, sources, name):
        return self._add(operator, sources, name, self.of[sources[0]], "")

    def given(self, name, shape):
        self.inputs[name] = shape
        return name

    @property
    def of(self):
        return self.inputs | {name: shape for *_, name, shape in self.nodes}

    def _add(self, operator, sources, name, shape, domain, **attributes):
        node = helper.make_node(operator, sources, [name], name=name, domain=domain, **attributes)
        self.nodes.append((node, name, shape))
        return name

    def model(self, *returned):
        ports = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.of.items()}
        graph = helper.make_graph(
            [node for node, *_ in self.nodes], "graph", [ports[name] for name in self.inputs],
            [ports[name] for name in returned],
            [onnx.numpy_helper.from_array(array, name) for name, array in self.weights.items()],
            value_info=[ports[name] for _, name, _ in self.nodes if name not in returned],
        )  # fmt: skip
        imports = [helper.make_opsetid("", 20), helper.make_opsetid(OWN, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def joined(model, expected):
    """The model once the pass went over it, which joined so many things."""
    rewritten = ir.from_proto(model)
    assert JoinedIntegerConvs().apply(rewritten) == expected
    RemoveUnusedNodesPass()(rewritten)
    return ir.to_proto(rewritten)


def assert_same(graph, model, after, sets, run):
    feed = {name: graph.random.standard_normal(shape, np.float32) for name, shape in graph.inputs.items()}
    for before, each in zip(sets(model), sets(after), strict=True):
        expected = run(before, feed, 1)
        for threads in (1, 2):
            for name, array in run(each, feed, threads).items():
                np.testing.assert_array_equal(array, expected[name])
                assert np.abs(array).max() > 0.1


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


# batch, inputs, channels between, outputs, height, width. Pixels are written by 64, panels are of 32 outputs.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 6, 37, 5, 7, 9),
    (1, 20, 64, 33, 17, 13),
    (1, 3, 31, 4, 2, 300),
    (1, 4, 128, 3, 181, 182),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("side", [3, 1])
def test_a_convolution_writes_the_bytes_that_the_next_one_reads(sets, run, random, sizes, side):
    batch, inputs, between, outputs, height, width = sizes
    graph = Graph(random, (batch, inputs, height, width))
    middle = graph.conv("x", "first", (batch, between, height, width), shift=graph.given("s", (1, between, 1, 1)))
    graph.conv(middle, "y", (batch, outputs, height, width), side, step=0.05, zero=7)
    model = graph.model("y")
    after = joined(model, 1)
    assert after.graph.node[0].output[0] == ""  # floats are not made
    assert_same(graph, model, after, sets, run)


@pytest.mark.parametrize("zero", [0, 121])
def test_a_relu_is_its_convolutions_own(sets, run, random, zero):
    """Behind a residual, and read by the next residual too, as in the blocks of TAESD."""
    graph = Graph(random, (2, 6, 7, 9))
    shape = (2, 37, 7, 9)
    first = graph.conv("x", "first", shape, added=graph.given("residual", shape))
    relu = graph.plain("Relu", [first], "relu")
    graph.conv(first if zero == 0 else relu, "second", shape, zero=zero)
    graph.conv("second", "y", shape, added=relu)
    model = graph.model("y")
    after = joined(model, 3)
    assert operators(after) == {"IntegerConv": 3}
    assert_same(graph, model, after, sets, run)


def test_a_relu_stays_where_somebody_else_wants_what_is_below_0(sets, run, random):
    graph = Graph(random, (1, 6, 5, 5))
    first = graph.conv("x", "first", (1, 8, 5, 5))
    relu = graph.plain("Relu", [first], "relu")
    graph.conv(first, "second", (1, 8, 5, 5), zero=3)
    graph.plain("Add", ["second", relu], "y")
    model = graph.model("y")
    after = joined(model, 1)  # the bytes
    assert operators(after)["Relu"] == 1
    assert_same(graph, model, after, sets, run)


@pytest.mark.parametrize("silu", [0, 1])
@pytest.mark.parametrize("side", [3, 1])
def test_a_norm_is_done_as_its_convolution_rounds(sets, run, random, silu, side):
    graph = Graph(random, (2, 6, 7, 35))
    normed = graph.norm("x", "norm", silu)
    graph.conv(normed, "y", (2, 37, 7, 35), side)
    model = graph.model("y")
    after = joined(model, 1)
    assert operators(after) == {"IntegerConv": 1}
    assert_same(graph, model, after, sets, run)


def test_a_norm_that_is_read_twice_stays(sets, run, random):
    graph = Graph(random, (2, 6, 7, 9))
    normed = graph.norm("x", "norm", 1)
    graph.conv(normed, "first", (2, 6, 7, 9))
    graph.plain("Add", ["first", normed], "y")
    model = graph.model("y")
    assert_same(graph, model, joined(model, 0), sets, run)


@pytest.mark.parametrize("adds", [False, True])
def test_an_upsampled_picture_is_read_and_written_as_bytes_too(sets, run, random, adds):
    graph, large = Graph(random, (2, 6, 7, 35)), (2, 37, 14, 70)
    graph.conv("x", "first", (2, 9, 7, 35))
    more = {"added": graph.given("residual", large)} if adds else {}
    graph.conv("first", "second", large, upsampled=1, **more)
    graph.conv("second", "y", large)
    model = graph.model("y")
    assert_same(graph, model, joined(model, 2), sets, run)


def test_of_readers_that_round_otherwise_some_read_floats(sets, run, random):
    graph, shape = Graph(random, (1, 6, 7, 9)), (1, 8, 7, 9)
    first = graph.conv("x", "first", shape)
    for name, side in (("a", 3), ("b", 1), ("c", 3)):
        graph.conv(first, name, shape, side)
    model = graph.model("a", "b", "c")
    after = joined(model, 1)
    made = {node.name: [bool(name) for name in node.input][:1] for node in after.graph.node}
    assert made == {"first": [True], "a": [False], "b": [True], "c": [False]}
    assert_same(graph, model, after, sets, run)


def test_what_the_graph_returns_is_made_as_floats_too(sets, run, random):
    graph, shape = Graph(random, (1, 6, 7, 9)), (1, 8, 7, 9)
    graph.conv(graph.conv("x", "first", shape), "y", shape)
    model = graph.model("first", "y")
    assert_same(graph, model, joined(model, 1), sets, run)


def test_bytes_pass_from_segment_to_segment(able, run, random):
    graph, shape = Graph(random, (1, 6, 7, 9)), (1, 8, 7, 9)
    graph.conv(graph.conv("x", "first", shape), "y", shape)
    whole = joined(graph.model("y"), 1)
    values = {"x": random.standard_normal((1, 6, 7, 9), np.float32)}
    expected = run(whole, values)["y"]
    segments = [ir.to_proto(segment) for segment in cut(ir.from_proto(whole), 1)]
    assert [[port.name for port in segment.graph.input] for segment in segments] == [["x"], ["first_bytes"]]
    for segment in segments:
        values = run(segment, values)
    np.testing.assert_array_equal(values["y"], expected)


@pytest.mark.parametrize(
    ("attributes", "inputs", "message"),
    [
        ({"next_scale": 0.0}, {}, "no such rounding of its output"),
        ({"next_zero": 256}, {}, "no such rounding of its output"),
        ({}, {7: (np.float32, 6)}, "a scale and a bias"),
        ({"groups": 4}, {7: (np.float32, 6), 8: (np.float32, 6)}, "channels make its groups"),
        ({}, {9: (np.uint8, (1, 9, 11, 8))}, "either x"),
        ({}, {0: None}, "either x"),
        ({}, {0: None, 9: (np.uint8, (1, 9, 11, 6))}, "no picture"),
        ({}, {0: None, 9: (np.uint8, (1, 1, 11, 8))}, "less around them"),
        ({}, {0: None, 9: (np.uint8, (1, 9, 11, 12))}, "such channels"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_an_error(able, run, random, attributes, inputs, message):
    """inputs: by place, types and shapes of other ones."""
    graph = Graph(random, (1, 6, 7, 9))
    graph.conv("x", "y", (1, 8, 7, 9))
    model = graph.model("y")
    (node,) = model.graph.node
    names = [*node.input, *[""] * (10 - len(node.input))]
    for place, what in inputs.items():
        names[place] = "" if what is None else f"more_{place}"
        if what is not None:
            dtype, shape = what
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, dtype), names[place]))
    del node.input[:]
    node.input.extend(names)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    with pytest.raises(Exception, match=message):
        run(model, {"x": random.standard_normal((1, 6, 7, 9), np.float32)})
