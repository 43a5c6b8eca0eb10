"""Rows that a text encoder's table has not: picked by ids above every vocabulary, and the table's own as before."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tintype.kernels.graph.added_rows import take_rows

FIRST = 2**30


@pytest.fixture(params=["float32", "float16", "int32-ids"])
def encoder(request, model_of):
    """ids -> rows of a table, plus rows of positions, whose ids are constants."""
    table = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    half = request.param == "float16"
    kind = TensorProto.INT32 if request.param == "int32-ids" else TensorProto.INT64
    picked = [helper.make_node("Gather", ["table", "ids"], ["rows" if half else "words"])]
    if half:
        table = table.astype(np.float16)
        picked.append(helper.make_node("Cast", ["rows"], ["words"], to=TensorProto.FLOAT))
    nodes = [
        helper.make_node("Reshape", ["input_ids", "shape"], ["ids"]),
        helper.make_node("Gather", ["positions", "places"], ["where"]),
        *picked,
        helper.make_node("Add", ["words", "where"], ["last_hidden_state"]),
        helper.make_node("ReduceMax", ["input_ids"], ["highest"]),
    ]
    weights = {
        "table": table,
        "positions": np.arange(12, dtype=np.float32).reshape(3, 4),
        "places": np.array([[0, 1, 2]]),
        "shape": np.array([-1, 3]),
    }
    model = model_of(nodes, {"input_ids": (kind, [1, 3])}, ["last_hidden_state", "highest"], weights)
    return ir.from_proto(model), table.astype(np.float32), weights["positions"], helper.tensor_dtype_to_np_dtype(kind)


def test_ids_of_both_kinds_pick_their_rows(encoder, run):
    model, table, positions, kind = encoder
    given = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float32)
    assert take_rows(model, "more", 8, FIRST)
    ids = np.array([[4, FIRST + 7, FIRST]], kind)
    found = run(ir.to_proto(model), {"input_ids": ids, "more": given})
    np.testing.assert_array_equal(found["last_hidden_state"][0], np.stack([table[4], given[7], given[0]]) + positions)
    assert found["highest"].max() == FIRST + 7  # what else looks at ids sees them as they are
    plain = run(ir.to_proto(model), {"input_ids": np.array([[0, 1, 2]], kind), "more": given * np.float32(np.nan)})
    np.testing.assert_array_equal(plain["last_hidden_state"][0], table[:3] + positions)


def test_a_graph_without_a_table_of_words_takes_none(model_of):
    nodes = [helper.make_node("Cast", ["input_ids"], ["last_hidden_state"], to=TensorProto.FLOAT)]
    model = ir.from_proto(model_of(nodes, {"input_ids": (TensorProto.INT64, [1, 3])}, ["last_hidden_state"], {}))
    assert not take_rows(model, "more", 8, FIRST)
    assert [value.name for value in model.graph.inputs] == ["input_ids"]
