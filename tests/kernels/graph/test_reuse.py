"""A graph as two: what one gives, the other takes in place of computing it, and both give what the whole one does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.dims import fold_sizes, pin
from tintype.kernels.graph.reuse import cross_attentions, deep_features, give_values, take_values

IMAGE = (1, 2, 4, 4)
OPERATORS = {"down": "Relu", "deeper": "Sigmoid", "middle": "Tanh"}


@pytest.fixture
def unet(model_of):
    """x -> down -> deeper -> middle, and back up over two skip connections; the time is a Concat of another rank."""
    nodes = [
        helper.make_node("Concat", ["t", "t"], ["time"], axis=1),
        helper.make_node("ReduceSum", ["time"], ["told"], keepdims=0),
        helper.make_node("Relu", ["x"], ["down"]),
        helper.make_node("Sigmoid", ["down"], ["deeper"]),
        helper.make_node("Tanh", ["deeper"], ["middle"]),
        helper.make_node("Concat", ["middle", "deeper"], ["inner"], axis=1),
        helper.make_node("Conv", ["inner", "w1"], ["up"]),
        helper.make_node("Shape", ["up"], ["size"]),  # read off a deep value
        helper.make_node("Concat", ["up", "down"], ["outer"], axis=1),
        helper.make_node("Conv", ["outer", "w0"], ["narrow"]),
        helper.make_node("Reshape", ["narrow", "size"], ["shaped"]),
        helper.make_node("Add", ["shaped", "told"], ["out_sample"]),
    ]
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((2, 4, 1, 1)).astype(np.float32) for name in ("w0", "w1")}
    inputs = {"x": (TensorProto.FLOAT, ["batch", *IMAGE[1:]]), "t": (TensorProto.FLOAT, [1, 1])}
    return lambda: ir.from_proto(model_of(nodes, inputs, ["out_sample"], weights))


@pytest.mark.parametrize(
    ("branch", "taken", "left"), [(0, "up", ["Relu"]), (1, "middle", ["Relu", "Sigmoid"])], ids=["outer", "inner"]
)
def test_with_the_values_of_the_same_step_both_give_what_the_whole_graph_does(unet, run, random, branch, taken, left):
    feed = {"x": random.standard_normal(IMAGE).astype(np.float32), "t": np.full((1, 1), 0.5, np.float32)}
    expected = run(ir.to_proto(unet()), feed)["out_sample"]
    giving, taking = unet(), unet()
    for model, use in ((giving, give_values), (taking, take_values)):
        pin(model, {"batch": 1})
        fold_sizes(model)
        use(model, [deep_features(model.graph)[branch]])
    given = run(ir.to_proto(giving), feed)
    assert list(given) == ["out_sample", taken]
    np.testing.assert_array_equal(given["out_sample"], expected)
    found = run(ir.to_proto(taking), {**feed, taken: given[taken]})
    np.testing.assert_array_equal(found["out_sample"], expected)
    kinds = [node.op_type for node in taking.graph]
    assert [kind for kind in kinds if kind in OPERATORS.values()] == left
    other = run(ir.to_proto(taking), {**feed, taken: given[taken] + 1})["out_sample"]
    assert np.abs(other - expected).max() > 0.1


def test_a_graph_has_as_many_branches_as_skip_connections(unet):
    assert [value.name for value in deep_features(unet().graph)] == ["up", "middle"]


@pytest.fixture
def attentions(model_of):
    """Self-attention, then attention to the words; each is projected and added to what it began with."""
    nodes = []
    for name, looked_at in (("self", "x"), ("cross", "self_sum")):
        keys = "x" if name == "self" else "encoder_hidden_states"
        for port, source in (("q", looked_at), ("k", keys), ("v", keys)):
            nodes.append(helper.make_node("MatMul", [source, f"{name}_{port}_w"], [f"{name}_{port}"]))
        heads = {"q_num_heads": 2, "kv_num_heads": 2}
        nodes += [
            helper.make_node("Attention", [f"{name}_q", f"{name}_k", f"{name}_v"], [f"{name}_seen"], **heads),
            helper.make_node("MatMul", [f"{name}_seen", f"{name}_o_w"], [f"{name}_product"]),
            helper.make_node("Add", [f"{name}_product", "bias"], [f"{name}_projected"]),
            helper.make_node("Add", [f"{name}_projected", looked_at], [f"{name}_sum"]),
        ]
    random = np.random.default_rng(0)
    names = [f"{name}_{port}_w" for name in ("self", "cross") for port in "qkvo"]
    weights = {name: random.standard_normal((4, 4)).astype(np.float32) for name in names}
    weights["bias"] = np.full((4,), 0.5, np.float32)
    inputs = {name: (TensorProto.FLOAT, [1, size, 4]) for name, size in (("x", 6), ("encoder_hidden_states", 3))}
    return lambda: ir.from_proto(model_of(nodes, inputs, ["cross_sum"], weights))


def test_without_its_cross_attentions_a_graph_doesnt_look_at_the_words(attentions, run, random):
    feed = {
        name: random.standard_normal((1, size, 4)).astype(np.float32)
        for name, size in (("x", 6), ("encoder_hidden_states", 3))
    }
    giving, taking = attentions(), attentions()
    give_values(giving, cross_attentions(giving.graph))
    take_values(taking, cross_attentions(taking.graph))
    given = run(ir.to_proto(giving), feed)
    assert list(given) == ["cross_sum", "cross_projected"]
    assert [node.op_type for node in taking.graph].count("Attention") == 1
    found = run(ir.to_proto(taking), {**feed, "cross_projected": given["cross_projected"]})
    np.testing.assert_array_equal(found["cross_sum"], given["cross_sum"])
    blind = {**feed, "encoder_hidden_states": -feed["encoder_hidden_states"]}
    found = run(ir.to_proto(taking), {**blind, "cross_projected": given["cross_projected"]})
    np.testing.assert_array_equal(found["cross_sum"], given["cross_sum"])
