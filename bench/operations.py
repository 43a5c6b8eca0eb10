"""How much a graph computes: multiplications and additions of its convolutions, products and attention, from shapes.

A multiplication with its addition is two operations. Everything else (norms, activations, copies) counts as nothing:
it is memory's time, not the processor's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx

from tintype.engine.graph import graph_shapes

Shapes = Mapping[str, tuple[int, ...]]


def operations(path: Path, dims: Mapping[str, int]) -> dict[str, int]:
    """Operations of one call of a canonical graph by operator, with these numbers for its named dims.

    Raises ValueError when the shape of something that counts does not follow from them.
    """
    shapes = graph_shapes(path, dims)
    found: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type in _COUNTS:
            try:
                count = _COUNTS[node.op_type](node, shapes)
            except KeyError as error:
                raise ValueError(f"{node.op_type} {node.name}: the shape of {error} is not known") from None
            found[node.op_type] = found.get(node.op_type, 0) + count
    return found


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    weight = shapes[node.input[1]]  # (outputs, inputs of a group, *kernel)
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(weight[1:])


def _product(node: onnx.NodeProto, shapes: Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Scores, and the values summed by them; all (batch, heads, sequence, size). Nothing is taken off for a mask."""
    query, key, value = (shapes[name] for name in node.input[:3])
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


_COUNTS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "MatMul": _product,
    "Gemm": _product,
    "Attention": _attention,
}
