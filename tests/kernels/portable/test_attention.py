"""Attention lowered to MultiHeadAttention means what it meant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tintype.kernels.portable.attention import AttentionAsMultiHead

FLOAT = TensorProto.FLOAT
# batch, heads, query length, key length, size of a head
SIZES = [(1, 1, 1, 1, 1), (1, 8, 33, 33, 5), (2, 3, 64, 77, 8), (3, 2, 7, 130, 40), (4, 4, 96, 11, 16)]


def _split(name, heads, size):
    return [
        helper.make_node("Reshape", [name, f"{name}_split"], [f"{name}_4d"]),
        helper.make_node("Transpose", [f"{name}_4d"], [f"{name}_heads"], perm=[0, 2, 1, 3]),
    ], {f"{name}_split": np.array([0, 0, heads, size], np.int64)}


def _canonical(model_of, batch, heads, query, key, size, *, mask=None, **attributes):
    """What torch exports: 3-D tensors, split into heads, Attention, joined again."""
    nodes, constants = [], {"join": np.array([0, 0, heads * size], np.int64)}
    for name in "qkv":
        more, shapes = _split(name, heads, size)
        nodes += more
        constants |= shapes
    names = ["q_heads", "k_heads", "v_heads"]
    if mask is not None:
        constants["mask"] = mask
        names.append("mask")
    nodes += [
        helper.make_node("Attention", names, ["attended"], **attributes),
        helper.make_node("Transpose", ["attended"], ["attended_4d"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["attended_4d", "join"], ["y"]),
    ]
    width = heads * size
    inputs = {"q": (FLOAT, ["batch", "query", width]) if mask is None else (FLOAT, [batch, query, width])}
    inputs |= {name: (FLOAT, ["batch", "key", width] if mask is None else [batch, key, width]) for name in "kv"}
    return model_of(nodes, inputs, ["y"], constants)


def _feed(random, batch, heads, query, key, size):
    lengths = {"q": query, "k": key, "v": key}
    return {name: random.standard_normal((batch, length, heads * size), np.float32) for name, length in lengths.items()}


def _heads(array, heads):
    return array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def _expected(feed, heads, mask=None, scale=0.0):
    result = AttentionAsMultiHead.reference(*(_heads(feed[name], heads) for name in "qkv"), mask, scale)
    return result.swapaxes(1, 2).reshape(feed["q"].shape)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_with_its_neighbours_becomes_one_node(model_of, lowered, random, sizes):
    feed = _feed(random, *sizes)
    result = lowered(_canonical(model_of, *sizes), feed)
    assert result.operators == ["MultiHeadAttention"]
    assert result.report.as_dict() == {"attention": 1}
    np.testing.assert_allclose(result.after["y"], _expected(feed, sizes[1]), atol=1e-5)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)


def test_a_scale_of_its_own_is_kept(model_of, lowered, random):
    sizes = (2, 4, 20, 20, 8)
    feed = _feed(random, *sizes)
    result = lowered(_canonical(model_of, *sizes, scale=0.7), feed)
    np.testing.assert_allclose(result.after["y"], _expected(feed, 4, scale=0.7), atol=1e-5)


@pytest.mark.parametrize("leading", [(1, 1), (2, 1), (1, 3), (2, 3)], ids=str)
@pytest.mark.parametrize("kind", [np.bool_, np.float32])
def test_a_fixed_mask_is_added_to_the_scores(model_of, lowered, random, leading, kind):
    sizes = (2, 3, 9, 9, 4)
    feed = _feed(random, *sizes)
    mask = random.standard_normal((*leading, 9, 9)).astype(np.float32)
    mask = np.tril(np.ones_like(mask)).astype(bool) if kind is np.bool_ else mask
    result = lowered(_canonical(model_of, *sizes, mask=mask), feed)
    assert result.operators == ["MultiHeadAttention"]
    np.testing.assert_allclose(result.after["y"], _expected(feed, 3, mask), atol=1e-5)


def test_a_causal_mask_spread_over_the_batch_is_taken_from_before_that(model_of, lowered, random):
    sizes = (3, 2, 77, 77, 8)
    model = _canonical(model_of, *sizes, mask=np.ones((3, 1, 77, 77), bool))
    feed = _feed(random, *sizes)
    causal = np.tril(np.ones((1, 1, 77, 77), bool))
    for value in list(model.graph.initializer):
        if value.name == "mask":
            model.graph.initializer.remove(value)
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(causal, "causal"), onnx.numpy_helper.from_array(np.array([3, 1, 77, 77]), "to")]
    )
    model.graph.node.insert(0, helper.make_node("Expand", ["causal", "to"], ["mask"]))
    model.graph.value_info.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, [3, 1, 77, 77]))
    result = lowered(model, feed)
    assert result.operators == ["MultiHeadAttention"]
    np.testing.assert_allclose(result.after["y"], _expected(feed, 2, causal), atol=1e-5)


def test_causal_attention_looks_back_only(model_of, lowered, random):
    sizes = (2, 2, 12, 12, 8)
    feed = _feed(random, *sizes)
    model = _canonical(model_of, *sizes, mask=np.zeros((1, 1, 12, 12), np.float32), is_causal=1)
    del model.graph.node[-3].input[3]
    result = lowered(model, feed)
    assert "MultiHeadAttention" in result.operators
    np.testing.assert_allclose(result.after["y"], _expected(feed, 2, np.tril(np.ones((12, 12), bool))), atol=1e-5)


def test_a_mask_that_is_only_known_at_run_time_stays_one(model_of, lowered, random):
    sizes = (2, 2, 6, 5, 4)
    model = _canonical(model_of, *sizes, mask=np.ones((6, 5), bool))
    del model.graph.initializer[[value.name for value in model.graph.initializer].index("mask")]
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.BOOL, [6, 5]))
    mask = random.random((6, 5)) < 0.6
    mask[:, 0] = True
    feed = _feed(random, *sizes)
    result = lowered(model, feed | {"mask": mask})
    assert "MultiHeadAttention" in result.operators
    np.testing.assert_allclose(result.after["y"], _expected(feed, 2, mask), atol=1e-5)


def test_heads_that_were_never_joined_are_joined_and_split_again(model_of, lowered, random):
    batch, heads, length, size = 2, 3, 10, 4
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"])]
    inputs = {name: (FLOAT, ["batch", heads, "length", size]) for name in "qkv"}
    feed = {name: random.standard_normal((batch, heads, length, size), np.float32) for name in "qkv"}
    result = lowered(model_of(nodes, inputs, ["y"], {}), feed)
    assert "MultiHeadAttention" in result.operators
    expected = AttentionAsMultiHead.reference(feed["q"], feed["k"], feed["v"])
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)


def test_attended_heads_that_others_read_too_are_still_there(model_of, lowered, random):
    sizes = (2, 3, 8, 8, 4)
    model = _canonical(model_of, *sizes)
    model.graph.output.append(helper.make_tensor_value_info("attended", FLOAT, [2, 3, 8, 4]))
    feed = _feed(random, *sizes)
    result = lowered(model, feed)
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)
    np.testing.assert_allclose(result.after["attended"], result.before["attended"], atol=1e-5)


@pytest.mark.parametrize(("attributes", "key_heads"), [({"softcap": 5.0}, 4), ({}, 2)], ids=["softcap", "fewer keys"])
def test_attention_of_another_kind_is_left_alone(model_of, lowered, random, attributes, key_heads):
    inputs = {"q": (FLOAT, [2, 4, 9, 8]), "k": (FLOAT, [2, key_heads, 9, 8]), "v": (FLOAT, [2, key_heads, 9, 8])}
    nodes = [helper.make_node("Attention", ["q", "k", "v"], ["y"], **attributes)]
    feed = {name: random.standard_normal(shape, np.float32) for name, (_, shape) in inputs.items()}
    result = lowered(model_of(nodes, inputs, ["y"], {}), feed)
    assert result.operators == ["Attention"]
    np.testing.assert_array_equal(result.after["y"], result.before["y"])
