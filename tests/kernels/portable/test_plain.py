"""What devices without integers, group norms or an attention kernel get: plain operators that mean the same."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.portable.attention_products import AttentionAsProducts
from tintype.kernels.portable.group_norm_instance import GroupNormAsInstanceNorm
from tintype.kernels.portable.plain_float import FLOAT_TARGETS, FloatActivations, FloatRows, FloatWeights
from tintype.kernels.registry import KERNELS_BY_TARGET, kernels_for

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize("mask", [None, "causal", "bool", "added", "from outside"])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(1, 1, 1), (2, 9, 9), (3, 6, 77)])
def test_attention_written_out_is_attention(model_of, lowered, random, mask, batch, queries, keys):
    if mask == "causal" and queries != keys:
        pytest.skip("a causal mask is square")
    heads, size = 3, 8
    shapes = {"q": (batch, heads, queries, size), "k": (batch, heads, keys, size), "v": (batch, heads, keys, 5)}
    feed = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    attributes, inputs, constants, given = {}, ["q", "k", "v"], {}, None
    if mask == "causal":
        attributes, given = {"is_causal": 1}, np.tril(np.ones((queries, keys), bool))
    elif mask is not None:
        given = random.uniform(size=(queries, keys)) < 0.7
        given[:, 0] = True
        given = given if mask == "bool" else random.standard_normal((queries, keys), np.float32)
        inputs.append("mask")
        (feed if mask == "from outside" else constants)["mask"] = given
    node = helper.make_node("Attention", inputs, ["y"], **attributes)
    told = {name: (FLOAT, array.shape) for name, array in feed.items()}
    result = lowered(model_of([node], told, ["y"], constants), feed, "openvino")
    assert result.report.as_dict() == {"attention_products": 1}
    assert "Attention" not in result.operators
    expected = AttentionAsProducts.reference(feed["q"], feed["k"], feed["v"], given)
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)


def test_a_scale_of_its_own_is_kept_and_keys_are_turned_once(model_of, lowered, random):
    feed = {name: random.standard_normal((2, 9, 3, 8), np.float32) for name in "qkv"}
    nodes = [helper.make_node("Transpose", [name], [f"{name}t"], perm=[0, 2, 1, 3]) for name in "qkv"]
    nodes.append(helper.make_node("Attention", ["qt", "kt", "vt"], ["y"], scale=0.5))
    inputs = {name: (FLOAT, ["batch", "length", 3, 8]) for name in "qkv"}
    result = lowered(model_of(nodes, inputs, ["y"], {}), feed, "openvino")
    assert result.operators.count("Transpose") == 3
    expected = AttentionAsProducts.reference(*(feed[name].swapaxes(1, 2) for name in "qkv"), scale=0.5)
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (2, 6, 5, 3), (4, 6, 7)])
@pytest.mark.parametrize("open_sizes", [False, True])
def test_group_norm_by_instances_is_group_norm(model_of, lowered, random, shape, open_sizes):
    x = random.standard_normal(shape).astype(np.float32) * 3 + 1
    constants = {name: random.standard_normal(6).astype(np.float32) for name in ("scale", "bias")}
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=3, epsilon=1e-5)
    told = ["batch", 6, *("hwd"[: len(shape) - 2] if open_sizes else shape[2:])]
    model = model_of([node], {"x": (FLOAT, told)}, {"y": (FLOAT, told)}, constants)
    result = lowered(model, {"x": x}, "webgpu")
    assert result.report.as_dict() == {"group_norm_instance": 1}
    assert ("Shape" in result.operators) == open_sizes
    expected = GroupNormAsInstanceNorm.reference(x, constants["scale"], constants["bias"], 3, 1e-5)
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "axis"), [(np.int8, 0), (np.int8, 1), (np.uint8, 1), (np.int8, None), (np.int32, 0)])
def test_quantized_weights_become_the_floats_that_they_stand_for(model_of, lowered, random, kind, axis):
    limits = (0, 255) if kind == np.uint8 else (-127, 127)
    stored = random.integers(*limits, (5, 4)).astype(kind)
    steps = () if axis is None else (stored.shape[axis],)
    constants = {"stored": stored, "scale": random.uniform(0.1, 1, steps).astype(np.float32)}
    inputs, zero, broadcast = ["stored", "scale"], 0, [1, 1]
    if axis is not None:
        broadcast[axis] = -1
    if kind == np.uint8:
        constants["zero"] = np.full(steps, 131, np.uint8)
        inputs, zero = [*inputs, "zero"], 131
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["weight"], **({} if axis is None else {"axis": axis})),
        helper.make_node("Add", ["x", "weight"], ["y"]),
    ]
    feed = {"x": np.zeros((5, 4), np.float32)}
    result = lowered(model_of(nodes, {"x": (FLOAT, [5, 4])}, ["y"], constants), feed, "webgpu")
    assert result.report.as_dict() == {"float_weights": 1}
    assert result.operators == ["Add"]
    expected = FloatWeights.reference(stored, constants["scale"].reshape(broadcast if steps else ()), zero)
    np.testing.assert_allclose(result.after["y"], expected, rtol=1e-6)
    np.testing.assert_array_equal(result.after["y"], result.before["y"])


def test_half_weights_and_half_tables_become_floats(model_of, lowered, random):
    table, weight = random.standard_normal((9, 4)).astype(np.float16), random.standard_normal((4, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["x"], to=FLOAT),
        helper.make_node("Cast", ["weight"], ["w"], to=FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    feed = {"ids": np.array([[3, 0, 8]])}
    model = model_of(nodes, {"ids": (INT64, [1, 3])}, ["y"], {"table": table, "weight": weight})
    result = lowered(model, feed, "webgpu")
    assert result.report.as_dict() == {"float_weights": 1, "float_rows": 1}
    assert "Cast" not in result.operators
    expected = FloatRows.reference(table, feed["ids"]) @ weight.astype(np.float64)
    np.testing.assert_allclose(result.after["y"], expected, atol=1e-5)


def test_rounding_to_8_bits_is_left_out(model_of, lowered, random):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "middle"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
        helper.make_node("DequantizeLinear", ["q", "step", "middle"], ["z"]),
    ]
    constants = {"step": np.array(0.1, np.float32), "middle": np.array(128, np.uint8)}
    x = random.standard_normal((2, 5)).astype(np.float32) * 3
    model = model_of(nodes, {"x": (FLOAT, [2, 5])}, {"y": (FLOAT, [2, 5]), "z": (FLOAT, [2, 5])}, constants)
    result = lowered(model, {"x": x}, "webgpu")
    assert "QuantizeLinear" not in result.operators
    np.testing.assert_array_equal(result.after["y"], np.maximum(FloatActivations.reference(x), 0))
    np.testing.assert_array_equal(result.after["z"], x)
    np.testing.assert_allclose(result.before["y"], result.after["y"], atol=0.051)


def test_rounding_with_another_scale_is_left_alone(model_of, lowered):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "other", "middle"], ["y"]),
    ]
    constants = {"step": np.float32(0.1), "other": np.float32(0.2), "middle": np.array(128, np.uint8)}
    constants = {name: np.asarray(value) for name, value in constants.items()}
    result = lowered(model_of(nodes, {"x": (FLOAT, [3])}, ["y"], constants), {"x": np.ones(3, np.float32)}, "webgpu")
    assert result.report.as_dict() == {}


@pytest.mark.parametrize("target", FLOAT_TARGETS)
def test_a_device_gets_the_attention_that_it_can_compute(target):
    names = [kernel.name for kernel in kernels_for(target, [])]
    assert "attention_products" in names
    assert "attention" not in names
    able = [kernel.name for kernel in kernels_for(target, ["attention"])]
    assert able == [kernel.name for kernel in KERNELS_BY_TARGET[target]]
