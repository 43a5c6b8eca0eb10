"""A whole graph in float16, its interface and its islands in float32: what a GPU computes at twice the speed.

Not a kernel of one operator but of all: weights, constants and what flows between nodes. Where float16 would overflow
or lose what counts, nodes stay in float32 between two Casts: the embedding of the timestep always, others by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import MICROSOFT

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)
# Inputs that are float32 by definition, whatever the data is.
FLOAT_INPUTS: Mapping[tuple[str, str], tuple[int, ...]] = {("", "Resize"): (1, 2), (MICROSOFT, "GroupNorm"): (1, 2)}
# Angles are products of up to 1000 with small frequencies: 11 bits are too few.
ANGLES = ("Sin", "Cos")


def to_half(model: ir.Model, islands: Collection[str] = ()) -> int:
    """Rewrite a float32 graph in place; returns how many nodes compute in float16.

    islands: names of nodes that stay in float32. Inputs and outputs of the graph keep their types and shapes.
    """
    graph = model.graph
    kept = _kept_in_float(graph, islands)
    halves: dict[ir.Value, ir.Value] = {}
    floats: dict[ir.Value, ir.Value] = {}
    nodes = [node for node in graph if any(_is_float(value) for value in (*node.inputs, *node.outputs))]
    changed = [node for node in nodes if node not in kept]
    made_half = {output for node in changed for output in node.outputs if _is_float(output)}
    for node in changed:
        for index, value in enumerate(node.inputs):
            if value is None or not _is_float(value) or value in made_half:
                continue
            if index not in FLOAT_INPUTS.get((node.domain, node.op_type), ()):
                node.replace_input_with(index, _as_half(value, graph, halves))
        _retype(node)
    for output in made_half:
        output.dtype = HALF
    for node in nodes:
        for index, value in enumerate(node.inputs):
            wants_float = node in kept or index in FLOAT_INPUTS.get((node.domain, node.op_type), ())
            if value is not None and value in made_half and wants_float:
                node.replace_input_with(index, _as_float(value, graph, floats))
    _keep_interface(graph, made_half)
    return len(changed)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


def _kept_in_float(graph: ir.Graph, islands: Collection[str]) -> set[ir.Node]:
    """Nodes of the islands, and everything that leads to a sine or cosine, and these."""
    kept = {node for node in graph if node.name in islands or node.op_type == "DequantizeLinear"}
    behind = [node for node in graph if node.op_type in ANGLES]
    while behind:
        node = behind.pop()
        if node in kept:
            continue
        kept.add(node)
        behind += [made_by for made_by in (value.producer() for value in node.inputs if value is not None) if made_by]
    return kept


def _as_half(value: ir.Value, graph: ir.Graph, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """A float32 value in float16: a constant as a new constant, another one cast where it is made."""
    if value in made:
        return made[value]
    if value.const_value is not None and not value.is_graph_input():
        data = np.clip(value.const_value.numpy(), -LARGEST, LARGEST).astype(np.float16)
        half = ir.Value(name=f"{value.name}_half", const_value=ir.tensor(data, name=f"{value.name}_half"))
        half.shape, half.dtype = ir.Shape(data.shape), HALF
        graph.register_initializer(half)
    else:
        half = _cast(value, HALF, graph)
    made[value] = half
    return half


def _as_float(value: ir.Value, graph: ir.Graph, made: dict[ir.Value, ir.Value]) -> ir.Value:
    if value not in made:
        made[value] = _cast(value, FLOAT, graph)
    return made[value]


def _cast(value: ir.Value, kind: ir.DataType, graph: ir.Graph) -> ir.Value:
    """A Cast right behind what makes the value, or at the graph's beginning."""
    node = ir.node("Cast", [value], attributes={"to": kind.value})
    node.outputs[0].shape, node.outputs[0].dtype = value.shape, kind
    made_by = value.producer()
    if made_by is not None:
        graph.insert_after(made_by, node)
    elif len(graph):
        graph.insert_before(graph[0], node)
    return node.outputs[0]


def _retype(node: ir.Node) -> None:
    """Attributes that name a float type: a Cast to float now casts to half, a filling constant is one."""
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == FLOAT.value:
        node.attributes["to"] = ir.AttrInt64("to", HALF.value)
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        filling = node.attributes["value"].as_tensor().numpy()
        if filling.dtype == np.float32:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filling.astype(np.float16)))


def _keep_interface(graph: ir.Graph, made_half: set[ir.Value]) -> None:
    """Cast the graph's outputs back, under their own names."""
    for index, output in enumerate(list(graph.outputs)):
        if output not in made_half:
            continue
        name = output.name
        output.name = f"{name}_half"
        whole = _cast(output, FLOAT, graph)
        whole.name = name
        graph.outputs[index] = whole
