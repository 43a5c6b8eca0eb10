"""Integer products are exact on every processor: weights become uint8 where those of uint8 and int8 saturate."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tintype.engine import BuildOptions, graph_session
from tintype.kernels.cpu.unsigned_weights import UnsignedWeights
from tintype.kernels.registry import kernels_for, lower

FLOAT = TensorProto.FLOAT


def _names(abilities=(), exactness="balanced"):
    return {kernel.name for kernel in kernels_for("cpu", abilities, exactness=exactness)}


def test_weights_are_moved_only_where_mixed_products_are_not_exact_and_integers_are_multiplied():
    assert "unsigned_weights" in _names()
    assert "unsigned_weights" not in _names({"mixed_products"})
    assert "unsigned_weights" not in _names(exactness="exact")


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("zero", [None, -3])
def test_moved_weights_stand_for_the_same_numbers(model_of, random, by_channel, zero):
    integers = random.integers(-128, 128, (20, 7)).astype(np.int8)
    scale = np.asarray(random.random(7 if by_channel else (), np.float32) + np.float32(0.1))
    constants = {"weight": integers, "scale": scale}
    inputs = ["weight", "scale"]
    if zero is not None:
        constants["zero"] = np.full(scale.shape, zero, np.int8)
        inputs.append("zero")
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["float"], axis=1),
        helper.make_node("MatMul", ["x", "float"], ["y"]),
    ]
    x = random.standard_normal((3, 20), np.float32)
    model = model_of(nodes, {"x": (FLOAT, ["batch", 20])}, ["y"], constants)
    rewritten = ir.from_proto(model)
    report = lower(rewritten, "cpu", kernels=[UnsignedWeights()])
    assert report.as_dict() == {"unsigned_weights": 1}
    stored = [value.const_value.numpy() for value in rewritten.graph.initializers.values()]
    assert any(array.dtype == np.uint8 and array.shape == integers.shape for array in stored)
    expected = x.astype(np.float64) @ ((integers.astype(float) - (zero or 0)) * scale)
    (result,) = ReferenceEvaluator(ir.to_proto(rewritten)).run(None, {"x": x})  # ONNX Runtime's own would round x
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(UnsignedWeights.reference(integers).astype(int) - 128, integers)


def test_a_table_of_rows_is_no_product_and_stays(model_of, lowered, random):
    table = random.integers(-127, 128, (50, 12)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale"], ["float"], axis=1),
        helper.make_node("Gather", ["float", "ids"], ["y"], axis=0),
    ]
    model = model_of(
        nodes, {"ids": (TensorProto.INT64, [4])}, ["y"], {"table": table, "scale": np.ones(12, np.float32)}
    )
    assert "unsigned_weights" not in lowered(model, {"ids": np.arange(4)}).report.as_dict()


def _conv(model_of, weight, upsampled):
    """A static int8 convolution, after nearest upsampling if asked: every product is the largest there is."""
    channels = weight.shape[0]
    constants = {
        "weight": weight,
        "ones": np.ones(channels, np.float32),
        "zeros": np.zeros(channels, np.int8),
        "one": np.float32(1),
        "low": np.uint8(0),
        "large": np.float32(9 * weight.shape[1] * 127),
        "sizes": np.array([1, 1, 2, 2], np.float32),
    }
    wide = [helper.make_node("Resize", ["x", "", "sizes"], ["wide"], mode="nearest", nearest_mode="floor")]
    wide[0].attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    source = "wide" if upsampled else "x"
    nodes = [
        *(wide if upsampled else []),
        helper.make_node("QuantizeLinear", [source, "one", "low"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "low"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "ones", "zeros"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "large", "low"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "large", "low"], ["y"]),
    ]
    return model_of(nodes, {"x": (FLOAT, [1, weight.shape[1], 6, 7])}, ["y"], constants)


@pytest.mark.parametrize("upsampled", [False, True])
@pytest.mark.parametrize("exactness", ["balanced", "exact"])
def test_the_largest_sums_of_a_convolution_do_not_saturate(model_of, tmp_path, upsampled, exactness):
    weight = np.full((16, 24, 3, 3), 127, np.int8)
    onnx.save(_conv(model_of, weight, upsampled), tmp_path / "model.onnx")
    options = BuildOptions.for_shape({"batch": 1}, exactness=exactness)
    with graph_session(tmp_path / "model.onnx", options=options, threads=1) as session:
        y = session.run({"x": np.full((1, 24, 6, 7), 255.0, np.float32)})["y"]
    inner = y[:, :, 1:-1, 1:-1]
    step = 9 * 24 * 127
    # Phases round sums of up to four weights to 8 bits: 127 alone is 31.75 there. Saturated sums are half as large.
    rounding = 0.25 / 31.75 if upsampled and exactness == "balanced" else 1e-3
    np.testing.assert_allclose(inner, 255.0 * step, rtol=rounding)
