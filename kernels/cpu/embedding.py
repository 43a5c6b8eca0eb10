"""Rows of an embedding table that is stored small, turned to float after they are picked, not before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, add_constant, constant_of, insert, producer, replace


class EmbeddingRows(Kernel):
    """Gather of DequantizeLinear(table) or Cast(table), the other way round: 77 rows are converted, not 49,408."""

    name = "embedding"
    targets = ("cpu",)
    exactness = "the same bytes"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Rows of a fixed table that is cast to float, or quantized by tensor, by column, or by row around zero."""
        if node.op_type != "Gather" or node.domain != "" or node.attributes.get_int("axis", 0) != 0:
            return False
        cast = producer(node.inputs[0], "Cast")
        if cast is not None:
            table = constant_of(cast.inputs[0])
            return table is not None and table.ndim == 2
        dequantize = producer(node.inputs[0], "DequantizeLinear")
        if (
            dequantize is None
            or dequantize.attributes.get_int("block_size", 0) != 0
            or shapes.of(node.inputs[1]) is None
        ):
            return False
        table, scale = constant_of(dequantize.inputs[0]), constant_of(dequantize.inputs[1])
        if table is None or scale is None or table.ndim != 2 or table.dtype not in (np.int8, np.uint8):
            return False
        return not _by_row(dequantize, scale) or not _zero_point(dequantize, table, scale).any()

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        convert = producer(node.inputs[0], "Cast") or producer(node.inputs[0], "DequantizeLinear")
        if convert is None:
            raise ValueError(f"{node.name} picks no rows of a stored table")
        ids, output = node.inputs[1], node.outputs[0]
        rows = insert(node, "Gather", [convert.inputs[0], ids], attributes={"axis": 0})
        if convert.op_type == "Cast":
            replace(output, insert(node, "Cast", [rows], attributes=dict(convert.attributes), like=output))
            return
        table, scale = constant_of(convert.inputs[0]), constant_of(convert.inputs[1])
        if table is None or scale is None:
            raise ValueError(f"{convert.name} has no fixed table")
        if _by_row(convert, scale):
            steps = insert(node, "Gather", [convert.inputs[1], ids], attributes={"axis": 0})
            last = add_constant(graph, np.array([-1], np.int64), "last_axis")
            steps = insert(node, "Unsqueeze", [steps, last])
            whole = insert(node, "Cast", [rows], attributes={"to": ir.DataType.FLOAT.value})
            replace(output, insert(node, "Mul", [whole, steps], like=output))
            return
        name = convert.inputs[0].name if convert.inputs[0] is not None else "table"
        zero = add_constant(graph, _zero_point(convert, table, scale), f"{name}_zero_point")
        attributes = {"axis": len(ids.shape)} if scale.ndim == 1 and ids is not None and ids.shape is not None else {}
        inputs = [rows, convert.inputs[1], zero]
        replace(output, insert(node, "DequantizeLinear", inputs, attributes=attributes, like=output))

    @staticmethod
    def reference(table: NDArray[Any], scale: NDArray[Any], ids: NDArray[Any]) -> NDArray[Any]:
        """table (rows, columns) of integers around zero; scale (), (columns,) or (rows, 1)."""
        return (table * scale.astype(np.float64))[ids]


def _by_row(dequantize: ir.Node, scale: NDArray[Any]) -> bool:
    return scale.ndim == 1 and scale.size > 1 and dequantize.attributes.get_int("axis", 1) in (0, -2)


def _zero_point(dequantize: ir.Node, table: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    known = constant_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    return np.zeros(scale.shape, table.dtype) if known is None else known
