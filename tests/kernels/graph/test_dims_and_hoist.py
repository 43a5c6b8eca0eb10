"""Dims become numbers; what depends on the prompt alone moves into a graph of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.dims import evaluate, fold_sizes, pin
from tintype.kernels.graph.hoist import split_held

DIMS = {"batch": 2, "height": 24, "width": 16}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("height", 24),
        ("height/8", 3),
        ("height*width/64", 6),
        ("2*(width-1)+1", 31),
        ("floor(width/3)", 5),
        ("width//3", 5),
        ("-width+height", 8),
        ("height/7", None),
        ("depth", None),
        ("__import__('os')", None),
        ("height/0", None),
        ("height height", None),
    ],
)
def test_size_expressions(text, number):
    assert evaluate(text, DIMS) == number


def test_pinning_leaves_no_named_dim_and_refuses_a_missing_one(model_of):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, ["batch", "height/2"])}, ["y"], {}))
    with pytest.raises(ValueError, match="free dims batch"):
        pin(model, {"height": 4})
    pin(model, {"batch": 3, "height": 4})
    assert tuple(model.graph.inputs[0].shape) == tuple(model.graph.outputs[0].shape) == (3, 2)


def test_sizes_that_follow_from_a_pinned_shape_become_numbers_and_the_rest_stays(model_of):
    """y = x in as many rows as x has columns, doubled; what is made of x itself is no size."""
    nodes = [
        helper.make_node("Shape", ["x"], ["columns"], start=1),
        helper.make_node("Squeeze", ["columns", "axis"], ["scalar"]),
        helper.make_node("Mul", ["columns", "two"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["turned"]),
        helper.make_node("Cast", ["scalar"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["turned", "factor"], ["y"]),
        helper.make_node("Identity", ["scalar"], ["told"]),
    ]
    constants = {
        "axis": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "rest": np.array([-1], np.int64),
    }
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, ["batch", 6])}, ["y", "told"], constants))
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    expected = _run(model, {"x": x})
    pin(model, {"batch": 4})
    assert fold_sizes(model) == 4
    # A float is no size, though it comes of one; an output keeps the node that makes it.
    assert sorted(node.op_type for node in model.graph) == ["Cast", "Identity", "Mul", "Reshape"]
    found = _run(model, {"x": x})
    assert found["y"].shape == (12, 2)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def _run(model, feed):
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, feed), strict=True))


def _cross_attention(model_of):
    """out = (x @ q) @ (words @ k)^T, plus a number that depends on constants alone."""
    nodes = [
        helper.make_node("Cast", ["stored"], ["k"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["encoder_hidden_states", "k"], ["key"]),
        helper.make_node("Transpose", ["key"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "q"], ["query"]),
        helper.make_node("MatMul", ["query", "turned"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["out"]),
    ]
    random = np.random.default_rng(0)
    constants = {
        "stored": random.standard_normal((8, 4)).astype(np.float16),
        "q": random.standard_normal((6, 4)).astype(np.float32),
        "bias": np.array(0.5, np.float32),
    }
    inputs = {"x": (TensorProto.FLOAT, [5, 6]), "encoder_hidden_states": (TensorProto.FLOAT, [7, 8])}
    return model_of(nodes, inputs, ["out"], constants)


def test_what_depends_on_the_prompt_alone_is_split_off_and_means_the_same(model_of, run, random):
    whole = _cross_attention(model_of)
    x, words = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 6), (7, 8)))
    expected = run(whole, {"x": x, "encoder_hidden_states": words})["out"]
    step = ir.from_proto(whole)
    once = split_held(step)
    assert once is not None
    assert sorted(node.op_type for node in once.graph) == ["Cast", "MatMul", "Transpose"]
    assert [node.op_type for node in step.graph] == ["MatMul", "MatMul", "Add"]
    assert [value.name for value in step.graph.inputs] == ["x", "held_turned"]
    held = run(ir.to_proto(once), {"encoder_hidden_states": words})
    np.testing.assert_array_equal(run(ir.to_proto(step), {"x": x, **held})["out"], expected)


@pytest.mark.parametrize(("bound", "is_split"), [(7 * 4 * 4, True), (7 * 4 * 4 - 1, False)])
def test_nothing_is_split_off_that_takes_more_than_its_bound(model_of, bound, is_split):
    step = ir.from_proto(_cross_attention(model_of))
    before = [node.op_type for node in step.graph]
    assert (split_held(step, largest_bytes=bound) is not None) == is_split
    assert ([node.op_type for node in step.graph] == before) != is_split


def test_a_graph_without_a_prompt_stays_whole(model_of):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    model = ir.from_proto(model_of(nodes, {"x": (TensorProto.FLOAT, [2])}, ["y"], {}))
    assert split_held(model) is None
    assert len(model.graph) == 1
