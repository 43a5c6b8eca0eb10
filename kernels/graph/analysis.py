"""What a graph will need, read off it before anything runs: weights, live activations and multiplications."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from tintype.kernels.graph.blocks import bits_of
from tintype.kernels.graph.linear import half_weight
from tintype.kernels.graph.segments import is_fixed, touched_bytes, value_nbytes

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """Of a canonical graph whose shapes are numbers."""

    stored_bytes: int  # of weights as the bundle holds them, without table rows that aren't read
    float_bytes: int  # of the same weights in fp32
    saved_bytes: int  # of these, what a build for the processor does without, whose products read four bits and float16
    largest_bytes: int  # of one node's weights in fp32: what segments can't be smaller than
    live_bytes: int  # the most that is alive between two nodes, and what the node at work reads and makes
    multiplications: int  # of convolutions, products and attention


def analyse(graph: ir.Graph) -> Analysis:
    """Walk the graph in its order. Values whose size isn't known count as nothing."""
    nodes = list(graph)
    place = {node: index for index, node in enumerate(nodes)}
    last = {
        value: max((place[use.node] for use in value.uses() if use.node in place), default=place[node])
        for node in nodes
        for value in node.outputs
    }
    ending: dict[int, list[ir.Value]] = {}
    for value, index in last.items():
        if not value.is_graph_output():
            ending.setdefault(index, []).append(value)
    stored: dict[str, tuple[int, int]] = {}
    saved: dict[str, int] = {}
    live = most = largest = work = 0
    for index, node in enumerate(nodes):
        if not _is_of_weights(node):
            live += sum(_known(value) for value in node.outputs)
            most = max(most, live)
        mine = [_sizes(node, value) for value in node.inputs if value is not None and is_fixed(value)]
        stored |= {name: (size, floats) for name, size, floats in mine}
        if _is_read_as_stored(node):
            saved |= {name: floats - size for name, size, floats in mine}
        largest = max(largest, sum(floats for _, _, floats in mine))
        work += multiplications(node)
        live -= sum(_known(value) for value in ending.get(index, ()) if not _is_of_weights(value.producer()))
    return Analysis(
        stored_bytes=sum(size for size, _ in stored.values()),
        float_bytes=sum(floats for _, floats in stored.values()),
        saved_bytes=sum(saved.values()),
        largest_bytes=largest,
        live_bytes=most,
        multiplications=work,
    )


def multiplications(node: ir.Node) -> int:
    """Multiply-adds of one node; 0 for those that do little."""
    output = node.outputs[0]
    if node.op_type in ("MatMul", "Gemm"):
        inner = _dim(node.inputs[0], -1)
        return _elements(output) * inner
    if node.op_type == "Conv":
        weight = node.inputs[1]
        return _elements(output) * (_elements(weight) // max(1, _dim(weight, 0)))
    if node.op_type == "Attention":
        queries, keys = node.inputs[0], node.inputs[1]
        return 2 * _elements(queries) * _dim(keys, -2)
    return 0


def _is_read_as_stored(node: ir.Node) -> bool:
    """Whether a node makes floats of what products on the processor take as it is: blocks of four bits, and float16."""
    if bits_of(node.outputs[0]) == 4 and node.attributes.get_int("block_size", 0) != 0:
        return True
    readers = {use.node.op_type for use in node.outputs[0].uses()}
    return half_weight(node.outputs[0]) is not None and readers <= {"MatMul", "Gemm"}


def _is_of_weights(node: ir.Node | None) -> bool:
    """Whether all that a node reads is fixed: it is done when the graph is built."""
    return node is not None and all(value is None or is_fixed(value) for value in node.inputs)


def _sizes(node: ir.Node, weight: ir.Value) -> tuple[str, int, int]:
    """Name, bytes as stored, and bytes in fp32 (whole numbers that aren't quantized weights stay what they are)."""
    rows = _picked_rows(node)
    stored = touched_bytes(node, weight) if rows is None else min(touched_bytes(node, weight), rows)
    tensor = weight.const_value
    widened = tensor is not None and (tensor.dtype.is_floating_point() or node.op_type == "DequantizeLinear")
    factor = FLOAT_BYTES / tensor.dtype.itemsize if tensor is not None and widened else 1
    return str(weight.name), stored, int(stored * factor)


def _picked_rows(node: ir.Node) -> int | None:
    """Numbers of a table that is stored as integers of which rows are picked; None of all else: it is read whole."""
    uses = list(node.outputs[0].uses()) if node.op_type == "DequantizeLinear" else []
    if len(uses) != 1 or uses[0].node.op_type != "Gather" or uses[0].idx != 0:
        return None
    return _elements(uses[0].node.outputs[0])


def _known(value: ir.Value) -> int:
    size = value_nbytes(value)
    return int(size) if math.isfinite(size) else 0


def _elements(value: ir.Value | None) -> int:
    return math.prod(value.shape.numpy()) if value is not None and value.shape is not None else 0


def _dim(value: ir.Value | None, axis: int) -> int:
    if value is None or value.shape is None:
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 0
