"""Each of CUDA's kernels, written out for the processor, is the function that it took the place of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cuda.bias_add import BiasAdd
from tintype.kernels.cuda.bias_split_gelu import BiasSplitGelu
from tintype.kernels.cuda.group_norm_nhwc import GroupNormChannelsLast
from tintype.kernels.cuda.matmul_nbits import LinearNBits
from tintype.kernels.cuda.nhwc_conv import ConvChannelsLast
from tintype.kernels.cuda.skip_group_norm import SkipGroupNorm

FLOAT = TensorProto.FLOAT


def lower(cuda, proto, feed, folder, exactness="balanced"):
    """Lowered in float32 and run in plain form; what was put in, the operators and the outputs."""
    model = ir.from_proto(proto)
    report = cuda.lowered_for_cuda(model, half=False, exactness=exactness)
    operators = [node.op_type for node in model.graph]
    cuda.plain(model)
    return report.as_dict(), operators, cuda.run(model, feed, folder)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 5, 3), (4, 32, 16, 9)])
def test_group_norm_with_its_silu_is_one_node(cuda, model_of, random, tmp_path, silu, shape):
    x = random.standard_normal(shape).astype(np.float32) * 2 + 1
    constants = {name: random.standard_normal(shape[1]).astype(np.float32) for name in ("scale", "bias")}
    nodes = [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["n"], num_groups=4, epsilon=1e-5)]
    nodes.append(helper.make_node("Sigmoid", ["n"], ["s"]))
    nodes.append(helper.make_node("Mul", ["n", "s"], ["y"]) if silu else helper.make_node("Add", ["n", "s"], ["y"]))
    proto = model_of(nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, constants, {"n": (FLOAT, shape)})
    report, operators, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report["group_norm_channels_last"] == 1
    assert ("Sigmoid" in operators) != silu
    normed = GroupNormChannelsLast.reference(x, constants["scale"], constants["bias"], 4, 1e-5)
    gate = 1 / (1 + np.exp(-normed))
    np.testing.assert_allclose(result, normed * gate if silu else normed + gate, atol=2e-5)


@pytest.mark.parametrize(
    ("channels", "groups"), [(12, 4), (33, 33), (80, 40), (1026, 1)], ids=["odd", "single", "many", "wide"]
)
def test_a_group_norm_that_the_kernel_refuses_is_left_to_instance_norm(
    cuda, model_of, random, tmp_path, channels, groups
):
    constants = {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups)
    shape = (2, channels, 3, 2)
    proto = model_of([node], {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, constants)
    x = random.standard_normal(shape).astype(np.float32)
    report, _, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {"group_norm_instance": 1}
    expected = GroupNormChannelsLast.reference(x, constants["scale"], constants["bias"], groups, 1e-5)
    np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize(("side", "pad", "bias"), [(1, 0, True), (3, 1, True), (3, 0, False)])
@pytest.mark.parametrize("stored", [np.float32, np.float16])
def test_a_convolution_with_channels_last(cuda, model_of, random, tmp_path, side, pad, bias, stored):
    batch, inputs, outputs, height, width = 3, 5, 7, 6, 9
    weight = random.standard_normal((outputs, inputs, side, side)).astype(stored)
    constants = {"w": weight} | ({"b": random.standard_normal(outputs).astype(np.float32)} if bias else {})
    nodes = [helper.make_node("Cast", ["w"], ["float"], to=FLOAT)] if stored is np.float16 else []
    wide = ["float" if stored is np.float16 else "w", *(["b"] if bias else [])]
    nodes.append(helper.make_node("Conv", ["x", *wide], ["y"], pads=[pad] * 4, kernel_shape=[side, side]))
    x = random.standard_normal((batch, inputs, height, width)).astype(np.float32)
    proto = model_of(nodes, {"x": (FLOAT, x.shape)}, ["y"], constants)
    report, operators, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {"nhwc_conv": 1}
    assert operators.count("Transpose") == 2
    turned = weight.astype(np.float32).transpose(0, 2, 3, 1)
    expected = ConvChannelsLast.reference(x.transpose(0, 2, 3, 1), turned, pad) + constants.get("b", 0.0)
    np.testing.assert_allclose(result.transpose(0, 2, 3, 1), expected, atol=1e-4)


def test_strides_groups_and_dilations_go_with_the_convolution(cuda, model_of, run, random, tmp_path):
    constants = {"w": random.standard_normal((6, 2, 3, 3)).astype(np.float32)}
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 1, 1, 0], kernel_shape=[3, 3]
    )
    x = random.standard_normal((1, 4, 9, 11)).astype(np.float32)
    proto = model_of([node], {"x": (FLOAT, x.shape)}, ["y"], constants)
    _, _, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    np.testing.assert_allclose(result, run(proto, {"x": x})["y"], atol=1e-5)


def _block(model_of, shape, other, shared):
    """conv, + other, GroupNorm, conv; the sum is an output too if shared."""
    channels = shape[1]
    constants = {
        "w": np.eye(channels, dtype=np.float32)[:, :, None, None],
        "scale": np.linspace(0.5, 2, channels, dtype=np.float32),
        "bias": np.linspace(-1, 1, channels, dtype=np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    if len(other) == 2:
        nodes.append(helper.make_node("Unsqueeze", ["o", "axes"], ["wide"]))
    nodes.append(helper.make_node("Add", ["c", "wide" if len(other) == 2 else "o"], ["sum"]))
    nodes.append(helper.make_node("GroupNormalization", ["sum", "scale", "bias"], ["n"], num_groups=2))
    nodes.append(helper.make_node("Conv", ["n", "w"], ["y"]))
    outputs = {"y": (FLOAT, shape)} | ({"sum": (FLOAT, shape)} if shared else {})
    inner = {"n": (FLOAT, shape)}
    return model_of(nodes, {"x": (FLOAT, shape), "o": (FLOAT, other)}, outputs, constants, inner), constants


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (3, 8, 4, 4)])
def test_a_sum_that_is_normalized_is_one_node(cuda, model_of, random, tmp_path, shared, by_channel, shape):
    other = shape[:2] if by_channel else shape
    proto, constants = _block(model_of, shape, other, shared)
    x, o = (random.standard_normal(each).astype(np.float32) for each in (shape, other))
    report, operators, results = lower(cuda, proto, {"x": x, "o": o}, tmp_path)
    assert report["skip_group_norm"] == 1
    assert "Add" not in operators
    skip = o if by_channel else o.transpose(0, 2, 3, 1)
    expected = SkipGroupNorm.reference(x.transpose(0, 2, 3, 1), constants["scale"], constants["bias"], skip, 2)
    np.testing.assert_allclose(results[0].transpose(0, 2, 3, 1), expected, atol=2e-5)
    if shared:
        np.testing.assert_allclose(results[1], x + (o[:, :, None, None] if by_channel else o), atol=1e-6)


def test_two_norms_of_one_sum_share_it(cuda, model_of, random, tmp_path):
    shape = (2, 4, 3, 3)
    constants = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    constants["w"] = np.eye(4, dtype=np.float32)[:, :, None, None]
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "o"], ["sum"])]
    for name, groups in (("n", 1), ("m", 2)):
        nodes.append(helper.make_node("GroupNormalization", ["sum", "scale", "bias"], [name], num_groups=groups))
    nodes.append(helper.make_node("Sub", ["n", "m"], ["y"]))
    told = dict.fromkeys("xo", (FLOAT, shape)), dict.fromkeys("y", (FLOAT, shape))
    proto = model_of(nodes, *told, constants, dict.fromkeys("nm", (FLOAT, shape)))
    x, o = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    _, operators, (result,) = lower(cuda, proto, {"x": x, "o": o}, tmp_path)
    assert sorted(name for name in operators if "GroupNorm" in name) == ["GroupNorm", "SkipGroupNorm"]
    norms = [
        GroupNormChannelsLast.reference(x + o, constants["scale"], constants["bias"], groups, 1e-5) for groups in (1, 2)
    ]
    np.testing.assert_allclose(result, norms[0] - norms[1], atol=2e-5)


def test_an_exact_build_has_nothing_whose_last_bits_vary(cuda, model_of, random, tmp_path):
    shape = (2, 8, 4, 4)
    proto, constants = _block(model_of, shape, shape, False)
    x, o = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    report, operators, (result,) = lower(cuda, proto, {"x": x, "o": o}, tmp_path, "exact")
    assert report == {"group_norm_instance": 1}
    assert {"GroupNorm", "SkipGroupNorm", "NhwcConv"} & set(operators) == set()
    expected = GroupNormChannelsLast.reference(x + o, constants["scale"], constants["bias"], 2, 1e-5)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def _geglu(model_of, width, order=("v", "g")):
    constants = {"bias": np.linspace(-1, 1, width, dtype=np.float32), "w": np.eye(8, width, dtype=np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "bias"], ["b"]),
        helper.make_node("Split", ["b"], ["v", "gate"], axis=-1, num_outputs=2),
        helper.make_node("Gelu", ["gate"], ["g"]),
        helper.make_node("Mul", list(order), ["y"]),
    ]
    return model_of(nodes, {"x": (FLOAT, (2, 5, 8))}, ["y"], constants), constants


@pytest.mark.parametrize("order", [("v", "g"), ("g", "v")])
@pytest.mark.parametrize("width", [2560, 5120])
def test_geglu_is_one_node_where_the_kernel_has_its_width(cuda, model_of, random, tmp_path, width, order):
    proto, constants = _geglu(model_of, width, order)
    x = random.standard_normal((2, 5, 8)).astype(np.float32)
    report, operators, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {"bias_split_gelu": 1}
    assert operators == ["MatMul", "BiasSplitGelu"]
    expected = BiasSplitGelu.reference(x @ constants["w"], constants["bias"])
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_geglu_of_another_width_stays_as_it_is(cuda, model_of, random, tmp_path):
    proto, constants = _geglu(model_of, 2562)
    x = random.standard_normal((2, 5, 8)).astype(np.float32)
    report, _, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {}
    np.testing.assert_allclose(result, BiasSplitGelu.reference(x @ constants["w"], constants["bias"]), atol=1e-5)


@pytest.mark.parametrize(("channels", "fused"), [(320, True), (640, True), (322, False)])
def test_a_residual_behind_a_linear_layer_is_one_node(cuda, model_of, random, tmp_path, channels, fused):
    constants = {
        "bias": random.standard_normal(channels).astype(np.float32),
        "w": random.standard_normal((6, channels)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["bias", "p"], ["b"]),
        helper.make_node("Add", ["r", "b"], ["y"]),
    ]
    proto = model_of(nodes, {"x": (FLOAT, (2, 3, 6)), "r": (FLOAT, (2, 3, channels))}, ["y"], constants)
    x, r = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 6), (2, 3, channels)))
    report, _, (result,) = lower(cuda, proto, {"x": x, "r": r}, tmp_path)
    assert report == ({"bias_add": 1} if fused else {})
    np.testing.assert_allclose(result, BiasAdd.reference(x @ constants["w"], constants["bias"], r), atol=1e-4)


def _quantized(model_of, integers, scale, zero=None, **attributes):
    kinds = {"w": integers, "scale": scale} | ({} if zero is None else {"zero": zero})
    nodes = [
        helper.make_node("DequantizeLinear", list(kinds), ["float"], **attributes),
        helper.make_node("MatMul", ["x", "float"], ["y"]),
    ]
    return model_of(nodes, {"x": (FLOAT, (2, 3, integers.shape[0]))}, ["y"], kinds)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("inputs", [16, 96, 384])
def test_linear_layers_of_8_bits_stay_8_bits(cuda, model_of, random, tmp_path, inputs, kind, zero):
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    integers = random.integers(low, high + 1, (inputs, 10)).astype(kind)
    scale = random.uniform(0.01, 0.02, 10).astype(np.float32)
    zeros = random.integers(low, high + 1, 10).astype(kind) if zero else None
    proto = _quantized(model_of, integers, scale, zeros, axis=1)
    x = random.standard_normal((2, 3, inputs)).astype(np.float32)
    report, operators, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {"matmul_nbits": 1}
    assert operators == ["MatMulNBits"]
    expected = LinearNBits.reference(x, integers, scale, 0.0 if zeros is None else zeros.astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["int4", "uint4", "int8"])
@pytest.mark.parametrize(("inputs", "block"), [(64, 32), (48, 16), (256, 128)])
def test_weights_in_blocks_of_inputs(cuda, model_of, run, random, tmp_path, inputs, block, kind, zero):
    import ml_dtypes

    types = {"int4": (ml_dtypes.int4, -8, 8), "uint4": (ml_dtypes.uint4, 0, 16), "int8": (np.int8, -128, 128)}
    stored, low, high = types[kind]
    integers = random.integers(low, high, (inputs, 6))
    scale = random.uniform(0.01, 0.02, (inputs // block, 6)).astype(np.float32)
    zeros = random.integers(low, high, scale.shape) if zero else None
    proto = _quantized(
        model_of, integers.astype(stored), scale, None if zeros is None else zeros.astype(stored),
        axis=0, block_size=block,
    )  # fmt: skip
    x = random.standard_normal((2, 3, inputs)).astype(np.float32)
    report, operators, (result,) = lower(cuda, proto, {"x": x}, tmp_path)
    assert report == {"matmul_nbits": 1}
    assert operators == ["MatMulNBits"]
    expected = LinearNBits.reference(x, integers, scale, 0.0 if zeros is None else zeros)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)
    # The processor has this operator too, and reads the same blocks in the same way.
    model = ir.from_proto(proto)
    cuda.lowered_for_cuda(model, half=False)
    (own,) = cuda.run(model, {"x": x}, tmp_path)
    np.testing.assert_allclose(own, expected, rtol=1e-2, atol=2e-2)


def test_a_weight_that_no_block_divides_becomes_float(cuda, model_of, random, tmp_path):
    integers = random.integers(-127, 128, (50, 4)).astype(np.int8)
    scale = np.full(4, 0.01, np.float32)
    x = random.standard_normal((2, 3, 50)).astype(np.float32)
    report, operators, (result,) = lower(cuda, _quantized(model_of, integers, scale, axis=1), {"x": x}, tmp_path)
    assert report == {"float_integers": 1}
    assert operators == ["MatMul"]
    np.testing.assert_allclose(result, LinearNBits.reference(x, integers, scale), atol=1e-4)


def test_scales_that_float16_cannot_hold_well_are_not_used(cuda, model_of, random, tmp_path):
    integers = random.integers(-127, 128, (64, 4)).astype(np.int8)
    scale = np.array([0.01, 0.01, 1e-6, 0.01], np.float32)
    x = random.standard_normal((2, 3, 64)).astype(np.float32)
    report, _, _ = lower(cuda, _quantized(model_of, integers, scale, axis=1), {"x": x}, tmp_path)
    assert report == {"float_integers": 1}
