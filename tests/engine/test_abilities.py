"""What the processor can do is what it does: asked by a product, and true of ONNX Runtime's own kernels here."""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tintype.engine.device.abilities import abilities


def _product(rows):
    """255 x 127 a thousand times over, by ONNX Runtime as it comes; what it should be."""
    x, weight = np.full((rows, 1000), 255, np.uint8), np.full((1000, 48), 127, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [rows, 48])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0], x.astype(np.int64) @ weight


def test_mixed_products_are_an_ability_exactly_where_they_do_not_saturate(cpu):
    exact = all(np.array_equal(*_product(rows)) for rows in (1, 2, 33))
    assert ("mixed_products" in abilities(cpu)) is exact
