"""A text encoder's graph that takes rows of embeddings which its table has not (textual inversion: Gal et al. 2022).

Ids from a first one on are rows of that input, all others rows of the table, as before. Rows are picked, never computed
with: what the table's own ids give stays the same to the last bit.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import add_constant, insert, only_reader
from tintype.kernels.graph.reuse import dependent
from tintype.kernels.graph.segments import constant_values, is_fixed

IDS = "input_ids"  # of the words


def take_rows(model: ir.Model, name: str, count: int, first_id: int) -> bool:
    """Let a text encoder take so many rows more as an input, in place.

    first_id: of these, above every vocabulary. Returns False where the graph picks no rows of a table by its ids.
    """
    graph = model.graph
    gather = _table_of_words(graph)
    if gather is None:
        return False
    ids, picked = gather.inputs[1], gather.outputs[0]
    table = gather.inputs[0]
    assert ids is not None
    assert table is not None
    assert table.shape is not None
    width = table.shape[1]
    given = ir.Value(name=name, shape=ir.Shape([count, width]), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(given)
    kind = np.int32 if ids.dtype == ir.DataType.INT32 else np.int64
    first = add_constant(graph, np.array(first_id, kind), "first_added_id")
    none = add_constant(graph, np.array(0, kind), "first_id")
    is_added = insert(gather, "GreaterOrEqual", [ids, first])
    is_added.shape, is_added.dtype = ids.shape, ir.DataType.BOOL
    of_rows = insert(gather, "Sub", [ids, first], like=ids)
    gather.replace_input_with(1, insert(gather, "Where", [is_added, none, ids], like=ids))
    cast = only_reader(picked, "Cast")
    words = picked if cast is None else cast.outputs[0]  # rows of a table that is stored in half are cast
    readers = [(use.node, use.idx) for use in words.uses()]
    after = next(node for node in graph if any(node is reader for reader, _ in readers))
    row_ids = insert(after, "Where", [is_added, of_rows, none], like=ids)
    rows = insert(after, "Gather", [given, row_ids], attributes={"axis": 0}, like=words)
    last = add_constant(graph, np.array([-1], np.int64), "last_axis")
    chosen = insert(after, "Unsqueeze", [is_added, last])
    chosen.dtype = ir.DataType.BOOL
    if ids.shape is not None:
        chosen.shape = ir.Shape([*ids.shape, 1])
    joined = insert(after, "Where", [chosen, rows, words], like=words)
    for reader, place in readers:
        reader.replace_input_with(place, joined)
    return True


def _table_of_words(graph: ir.Graph) -> ir.Node | None:
    """What picks rows of a fixed table by the ids of words, or of what comes of them alone."""
    source = next((value for value in graph.inputs if value.name == IDS), None)
    if source is None:
        return None
    fixed, of_ids = constant_values(graph), dependent(graph, source)
    for node in graph:
        if node.op_type != "Gather" or node.domain != "" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, ids = node.inputs
        if table is None or ids not in of_ids or not (is_fixed(table) or table in fixed):
            continue
        if table.shape is not None and len(table.shape) == 2:
            return node
    return None
