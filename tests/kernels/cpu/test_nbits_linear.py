"""Weights of four bits by block: products that keep them, and floats where they are small."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.arrays import psnr_db
from tintype.engine.build import measure
from tintype.kernels.cpu.float_linear import FloatLinear
from tintype.kernels.cpu.geglu import GegluAsTwoLinears
from tintype.kernels.cpu.nbits_linear import NBitsLinear
from tintype.kernels.graph import choice
from tintype.kernels.graph.four_bits import BLOCK, block_scales, from_integers, to_integers
from tintype.kernels.native.linear import NativeLinear
from tintype.kernels.portable.plain_float import FloatScales, FloatWeights
from tintype.kernels.registry import kernels_for, lower, measured_kernels

FLOAT = TensorProto.FLOAT


@pytest.fixture
def lowered_by(run):
    """What a graph gives as it is and by these kernels, and its operators then."""

    def lowered(model, inputs, *kernels):
        rewritten = ir.from_proto(model)
        lower(rewritten, "cpu", kernels=kernels)
        after = ir.to_proto(rewritten)
        return run(model, inputs), run(after, inputs), [node.op_type for node in after.graph.node]

    return lowered


def _constants(weight):
    scales = block_scales(weight)
    return {
        "weight": to_integers(weight, scales).astype(ml_dtypes.uint4),
        "half_scale": scales.scale,
        "zero": scales.zero_point.astype(ml_dtypes.uint4),
    }, from_integers(to_integers(weight, scales), scales)


def _model(model_of, weight, *, bias=False, rows=6, block=BLOCK):
    """A linear layer as the export writes it; what its weight stands for."""
    constants, whole = _constants(weight)
    along = {"axis": 0, "block_size": block}
    nodes = [
        helper.make_node("Cast", ["half_scale"], ["scale"], to=FLOAT),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["float"], **along),
        helper.make_node("MatMul", ["x", "float"], ["product" if bias else "y"], name="layer"),
    ]
    if bias:
        constants["bias"] = np.linspace(-1, 1, weight.shape[1], dtype=np.float32)
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    return model_of(nodes, {"x": (FLOAT, [2, rows, len(weight)])}, ["y"], constants), whole


@pytest.fixture
def weight(random):
    return (random.standard_normal((96, 40)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_a_layer_keeps_its_four_bits(model_of, lowered_by, random, weight, bias, rows):
    x = random.standard_normal((2, rows, 96), np.float32)
    model, whole = _model(model_of, weight, bias=bias, rows=rows)
    before, after, operators = lowered_by(model, {"x": x}, FloatScales(), NBitsLinear())
    assert operators == ["MatMulNBits"]
    added = np.linspace(-1, 1, 40) if bias else 0.0
    exact = x.astype(np.float64) @ whole + added
    assert psnr_db(exact, before["y"]) > 55  # ONNX Runtime alone reads the form, and rounds inputs unless it is told
    constants, _ = _constants(weight)
    parts = [constants[name].astype(np.float64) for name in ("weight", "half_scale", "zero")]
    expected = NBitsLinear.reference(x, *parts, added)
    found, simulated = psnr_db(exact, after["y"]), psnr_db(exact, expected)
    assert found > 50  # here or there the processor does not round its inputs at all
    assert found > simulated - 3


def test_inputs_of_zero_give_the_bias(model_of, lowered_by, weight):
    model, _ = _model(model_of, weight, bias=True)
    _before, after, _operators = lowered_by(
        model, {"x": np.zeros((2, 6, 96), np.float32)}, FloatScales(), NBitsLinear()
    )
    np.testing.assert_allclose(after["y"], np.broadcast_to(np.linspace(-1, 1, 40), (2, 6, 40)), atol=1e-6)


@pytest.mark.parametrize("kernel", [FloatLinear(), NativeLinear(), FloatWeights()], ids=["float", "native", "weights"])
def test_small_weights_and_devices_without_integers_have_the_same_floats(model_of, lowered_by, random, weight, kernel):
    x = random.standard_normal((2, 12, 96), np.float32)
    model, whole = _model(model_of, weight, rows=12)
    _before, after, operators = lowered_by(model, {"x": x}, FloatScales(), kernel)
    assert "DequantizeLinear" not in operators
    np.testing.assert_allclose(after["y"], x.astype(np.float64) @ whole, rtol=1e-5, atol=1e-5)


def test_geglu_has_two_halves_of_four_bits(model_of, lowered_by, random):
    weight = (random.standard_normal((64, 48)) * 0.05).astype(np.float32)
    constants, whole = _constants(weight)
    constants["bias"] = random.standard_normal(48, np.float32)
    nodes = [
        helper.make_node("Cast", ["half_scale"], ["scale"], to=FLOAT),
        helper.make_node("DequantizeLinear", ["weight", "scale", "zero"], ["float"], axis=0, block_size=BLOCK),
        helper.make_node("MatMul", ["x", "float"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["wide"]),
        helper.make_node("Split", ["wide"], ["value", "gate"], axis=2, num_outputs=2),
        helper.make_node("Gelu", ["gate"], ["open"]),
        helper.make_node("Mul", ["value", "open"], ["y"]),
    ]
    model = model_of(nodes, {"x": (FLOAT, ["batch", "length", 64])}, ["y"], constants)
    x = random.standard_normal((2, 30, 64), np.float32)
    _before, after, operators = lowered_by(model, {"x": x}, FloatScales(), GegluAsTwoLinears(), NBitsLinear())
    assert operators.count("MatMulNBits") == 2
    assert "Split" not in operators
    assert psnr_db(GegluAsTwoLinears.reference(x, whole, constants["bias"]), after["y"]) > 50


def test_eight_bits_and_blocks_that_the_operator_does_not_know_are_left(model_of, lowered_by, random):
    integers = random.integers(0, 16, (24, 8)).astype(np.uint8)
    for kind, block in ((np.uint8, 8), (ml_dtypes.uint4, 8), (np.uint8, 24)):
        constants = {"weight": integers.astype(kind), "scale": np.full((24 // block, 8), 0.01, np.float32)}
        nodes = [
            helper.make_node("DequantizeLinear", ["weight", "scale"], ["float"], axis=0, block_size=block),
            helper.make_node("MatMul", ["x", "float"], ["y"]),
        ]
        x = random.standard_normal((5, 24), np.float32)
        model = model_of(nodes, {"x": (FLOAT, [5, 24])}, ["y"], constants)
        assert "MatMulNBits" not in lowered_by(model, {"x": x}, NBitsLinear())[2]


def test_an_exact_build_rounds_no_input():
    for exactness in ("exact", "balanced"):
        names = {kernel.name for kernel in kernels_for("cpu", exactness=exactness)}
        names |= {kernel.name for kernel in measured_kernels("cpu", exactness=exactness)}
        assert ("nbits_linear" in names) is (exactness == "balanced")


def test_where_memory_is_dear_no_layer_is_made_larger(model_of, random):
    weight = (random.standard_normal((320, 640)) * 0.05).astype(np.float32)
    proto, _ = _model(model_of, weight, rows=64)
    model = ir.from_proto(proto)
    FloatScales().rewrite(next(iter(model.graph)), model.graph)
    model.graph.remove(next(node for node in model.graph if node.op_type == "Cast"))
    kernels = [kernel for kernel in measured_kernels("cpu") if kernel.name in ("float_linear", "nbits_linear")]
    (layer,) = choice.layers(model.graph, kernels)
    assert layer.kind == "MatMul int4 weight"
    sizes = {name: choice.weight_bytes(choice.model_of(layer, name, model.opset_imports)) for name in layer.ways}
    assert sizes["nbits_linear"] <= 1.02 * sizes["as_is"] < 0.2 * sizes["float_linear"]
    ways = {name: measure.Way(1.0 if name == "as_is" else 0.5, size, 200.0) for name, size in sizes.items()}
    refused = measure.refusals(ways, {}, largest_bytes=0)
    assert set(refused) == {"float_linear"}
