"""A graph cut into segments that run one after another, so that no more weights than one segment's are in memory.

A cut goes between two nodes of the graph's order; what is made before it and read after it is handed on. Cuts are
chosen so that no segment's weights pass a limit and that as few bytes as possible are handed on, which puts them at
the borders of blocks. What comes of weights alone is never handed on: each segment that reads it makes it, as a build
folds it into a weight anyway. Exact: the same nodes on the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

CUT_BYTES = 2**20  # what one more cut is taken to cost, in bytes handed on
INTEGER_READERS = ("MatMul",)  # that take a dequantized weight's integers as they are stored
# Of two cuts that hand on as much, not the one before these: a product belongs with its layout, and OpenVINO 2025.4
# computes an attention wrong (31 dB) that the graph ends with.
LAYOUT = ("Reshape", "Transpose")
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Costs:
    """By node or by cut (before node i): what has to be known to choose."""

    handed: list[float]  # bytes that cross the cut before node i; infinite where they aren't known
    weights: list[dict[str, int]]  # by node what it reads of weights and what comes of them alone, and their bytes


def cut(model: ir.Model, limit_bytes: int) -> list[ir.Model]:
    """The model in segments whose weights stay within the limit, in the order in which they run.

    Each segment's outputs bear the names under which later segments read them. A piece that can't be cut any further
    may be larger than the limit. The model itself is left alone; all its shapes must be numbers.
    """
    stored = constant_values(model.graph)
    nodes = _runtime_nodes(model.graph, stored)
    costs = _costs(nodes, stored)
    stops = _stops(costs, limit_bytes, len(nodes))
    starts = [0, *stops[:-1]]
    return [_segment(model, nodes[start:stop], stored) for start, stop in zip(starts, stops, strict=True)]


def layer_bytes(model: ir.Model) -> list[int]:
    """By node, without those that work on weights alone, the bytes of weights that it brings into memory."""
    stored = constant_values(model.graph)
    return [sum(_weights(node, stored).values()) for node in _runtime_nodes(model.graph, stored)]


def value_nbytes(value: ir.Value) -> float:
    """Bytes of a value; infinite where its type or shape isn't known."""
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return _NEVER
    count = 1
    for dim in value.shape.numpy():
        count *= dim
    return count * value.dtype.itemsize


def touched_bytes(node: ir.Node, weight: ir.Value) -> int:
    """Bytes of a mapped weight that a node brings into memory: of a table the rows that it takes, else all."""
    whole = weight.const_value.nbytes if weight.const_value is not None else 0
    if node.op_type == "Gather" and node.inputs[0] is weight:
        return int(min(whole, value_nbytes(node.outputs[0])))
    return whole


def is_fixed(value: ir.Value) -> bool:
    """Whether a value is a weight of the graph."""
    return value.const_value is not None and not value.is_graph_input() and value.producer() is None


def constant_values(graph: ir.Graph) -> set[ir.Value]:
    """What comes of weights and constants alone, besides outputs of the graph."""
    found: set[ir.Value] = set()
    for node in graph:
        if all(value is None or is_fixed(value) or value in found for value in node.inputs) and not any(
            value.is_graph_output() for value in node.outputs
        ):
            found.update(node.outputs)
    return found


def _runtime_nodes(graph: ir.Graph, stored: set[ir.Value]) -> list[ir.Node]:
    """The nodes that a run has to do: a build does the others."""
    return [node for node in graph if not stored.issuperset(node.outputs)]


def _weights(node: ir.Node, stored: set[ir.Value]) -> dict[str, int]:
    """By name what a node reads of weights and what comes of them alone, and the bytes that come into memory."""
    found = {}
    for value in node.inputs:
        if value is not None and is_fixed(value):
            found[str(value.name)] = touched_bytes(node, value)
        elif value is not None and value in stored:
            maker = value.producer()
            integers = maker is not None and maker.op_type == "DequantizeLinear" and node.op_type in INTEGER_READERS
            weight = maker.inputs[0] if integers and maker is not None else None
            read = touched_bytes(node, weight) if weight is not None and is_fixed(weight) else value_nbytes(value)
            if node.op_type == "Gather":
                read = min(read, value_nbytes(node.outputs[0]))
            found[str(value.name)] = int(read) if read < _NEVER else 0
    return found


def _costs(nodes: list[ir.Node], stored: set[ir.Value]) -> _Costs:
    place = {node: index for index, node in enumerate(nodes)}
    change = [0.0] * (len(nodes) + 1)
    barred = [0.0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        for value in node.outputs:
            readers = [place[use.node] for use in value.uses() if use.node in place]
            # An output is held to the end, so that what is made of it alone is better made behind a cut.
            last = len(nodes) if value.is_graph_output() else max(readers, default=index)
            if last == index:
                continue
            size = value_nbytes(value)
            table, amount = (barred, 1.0) if size == _NEVER else (change, size)
            table[index + 1] += amount
            table[min(last + 1, len(nodes))] -= amount
    handed, crossing, closed = [], 0.0, 0.0
    for index in range(len(nodes)):
        crossing += change[index]
        closed += barred[index]
        handed.append(_NEVER if closed else crossing + (nodes[index].op_type in LAYOUT))
    return _Costs(handed, [_weights(node, stored) for node in nodes])


def _stops(costs: _Costs, limit: int, count: int) -> list[int]:
    """Where each segment ends: the cheapest way to get through, found from the front."""
    best = [0.0] + [_NEVER] * count
    came_from = [0] * (count + 1)
    for start in range(count):
        if best[start] == _NEVER:
            continue
        weights: dict[str, int] = {}
        total, reached = 0, False
        for stop in range(start + 1, count + 1):
            for name, size in costs.weights[stop - 1].items():
                if name not in weights:
                    weights[name] = size
                    total += size
            if total > limit and reached:
                break
            crossing = costs.handed[stop] if stop < count else 0.0
            if crossing == _NEVER:
                continue
            reached = True  # what can't be cut smaller is taken as it is
            cost = best[start] + crossing + CUT_BYTES
            if cost < best[stop]:
                best[stop], came_from[stop] = cost, start
            if total > limit:
                break
    stops, stop = [], count
    while stop > 0:
        stops.append(stop)
        stop = came_from[stop]
    return stops[::-1]


def _segment(model: ir.Model, nodes: list[ir.Node], stored: set[ir.Value]) -> ir.Model:
    inside = set(nodes)
    inputs: dict[ir.Value, None] = {}
    outputs: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            known = value is None or is_fixed(value) or value in stored
            if value is not None and not known and value.producer() not in inside:
                inputs[value] = None
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                outputs[value] = None
    segment = ir.Model(ir.convenience.extract(model.graph, list(inputs), list(outputs)), ir_version=model.ir_version)
    segment.opset_imports.update(model.opset_imports)
    return segment
