"""Query, key and value as one product."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cpu.fused_qkv import FusedQkv


def _model(model_of, x, weights, sources=("x", "x", "x")):
    nodes = [
        helper.make_node("MatMul", [source, f"w{index}"], [f"p{index}"], name=f"m{index}")
        for index, source in enumerate(sources)
    ]
    nodes.append(helper.make_node("Concat", ["p0", "p1", "p2"], ["y"], axis=-1))
    constants = {f"w{index}": weight for index, weight in enumerate(weights)}
    inputs = {name: (TensorProto.FLOAT, list(x.shape)) for name in dict.fromkeys(sources)}
    model = model_of(nodes, inputs, ["y"], constants)
    del model.graph.node[-1]  # onnx cannot infer the attention's shape; the Concat stood in for it
    model.graph.node.append(
        helper.make_node("MultiHeadAttention", ["p0", "p1", "p2"], ["y"], domain="com.microsoft", num_heads=4)
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x.shape)))
    return model


@pytest.mark.parametrize("shape", [(1, 9, 32), (2, 77, 64), (4, 5, 16)], ids=str)
def test_one_product_gives_what_three_gave(model_of, applied, random, shape):
    width = shape[-1]
    x = random.standard_normal(shape).astype(np.float32)
    weights = [(random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32) for _ in range(3)]
    result = applied(_model(model_of, x, weights), {"x": x}, FusedQkv())
    assert result.operators == ["MatMul", "Split", "MultiHeadAttention"]
    np.testing.assert_allclose(result.after["y"], result.before["y"], atol=1e-5)
    parts = FusedQkv.reference(x, *weights)
    np.testing.assert_allclose(parts[1], x.astype(np.float64) @ weights[1])


def test_cross_attention_is_left_alone(model_of, applied, random):
    x = random.standard_normal((1, 9, 32)).astype(np.float32)
    weights = [random.standard_normal((32, 32)).astype(np.float32) for _ in range(3)]
    model = _model(model_of, x, weights, sources=("x", "words", "words"))
    result = applied(model, {"x": x, "words": x}, FusedQkv())
    assert result.operators.count("MatMul") == 3
