"""Rows of a stored table are converted after they are picked, to the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from tintype.kernels.cpu.embedding import EmbeddingRows


@pytest.mark.parametrize("by", ["tensor", "column", "row"])
def test_rows_of_a_quantized_table(model_of, lowered, random, by):
    table = random.integers(-127, 128, (50, 12)).astype(np.int8)
    shape = {"tensor": (), "column": (12,), "row": (50,)}[by]
    scale = np.asarray(random.random(shape, np.float32) + np.float32(0.1))
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scale"], ["float"], axis=0 if by == "row" else 1),
        helper.make_node("Gather", ["float", "ids"], ["y"], axis=0),
    ]
    model = model_of(nodes, {"ids": (TensorProto.INT64, ["batch", 7])}, ["y"], {"table": table, "scale": scale})
    ids = random.integers(0, 50, (3, 7))
    result = lowered(model, {"ids": ids})
    assert result.report.as_dict()["embedding"] == 1
    assert result.operators[0] == "Gather"
    np.testing.assert_array_equal(result.after["y"], result.before["y"])
    expected = EmbeddingRows.reference(table, scale[:, None] if by == "row" else scale, ids)
    np.testing.assert_allclose(result.after["y"], expected, rtol=1e-6)


def test_rows_of_a_half_precision_table(model_of, lowered, random):
    table = random.standard_normal((50, 12)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["table"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["float", "ids"], ["y"], axis=0),
    ]
    model = model_of(nodes, {"ids": (TensorProto.INT64, ["batch", 7])}, ["y"], {"table": table})
    ids = random.integers(0, 50, (3, 7))
    result = lowered(model, {"ids": ids})
    assert result.operators == ["Gather", "Cast"]
    np.testing.assert_array_equal(result.after["y"], table.astype(np.float32)[ids])
