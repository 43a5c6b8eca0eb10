"""A whole graph in float16, its interface and its islands in float32: what a GPU computes at twice the speed.

Not a kernel of one operator but of all: weights, constants and what flows between nodes. Where float16 would overflow
or lose what counts, nodes stay in float32 between two Casts: the embedding of the timestep always, and what gives or
reads a value that was seen to be too large (`ranges`), whatever model it is of.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import LARGEST, MICROSOFT, add_lazy, describe, producer
from tintype.kernels.graph.unused import remove_unused

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST_HALF = float(np.finfo(np.float16).max)
SAFE = LARGEST_HALF / 4  # other prompts than those that were measured may go further
# Inputs that are float32 by definition, whatever the data is.
FLOAT_INPUTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "Resize"): (1, 2),
    (MICROSOFT, "GroupNorm"): (1, 2),
    (MICROSOFT, "SkipGroupNorm"): (1, 2),
}
ANGLES = ("Sin", "Cos")  # of products of up to 1000 with small frequencies: 11 bits are too few
MOVERS = frozenset(("Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Flatten", "Expand", "Slice", "Split"))
BOOLEANS = frozenset(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "IsNaN"))


def to_half(model: ir.Model, islands: Collection[str] = ()) -> int:
    """Rewrite a float32 graph in place; returns how many nodes compute in float16.

    islands: names of nodes that stay in float32 besides those that have to. Inputs and outputs of the graph keep their
    types and shapes.
    """
    graph = model.graph
    complete_types(model)
    _drop_float_stores(graph)
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
    remove_unused(model)
    return sum(not _is_store(node) for node in changed)


def complete_types(model: ir.Model) -> None:
    """Give an element type to what kernels put in without one; most nodes give what they take."""
    for node in model.graph:
        for output in node.outputs:
            if output.dtype is None:
                describe(output, output.shape, _type_given(node))


def _type_given(node: ir.Node) -> ir.DataType | None:
    if node.op_type == "Cast":
        return ir.DataType(node.attributes.get_int("to", FLOAT.value))
    if node.op_type in ("Shape", "Size", "NonZero"):
        return ir.DataType.INT64
    if node.op_type in BOOLEANS:
        return ir.DataType.BOOL
    if node.op_type == "ConstantOfShape":
        return node.attributes["value"].as_tensor().dtype if "value" in node.attributes else FLOAT
    if node.op_type == "DequantizeLinear":
        scale = node.inputs[1]
        return scale.dtype if scale is not None else FLOAT
    wanted = node.inputs[1] if node.op_type == "Where" else node.inputs[0] if node.inputs else None
    return wanted.dtype if wanted is not None else None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == FLOAT


def _is_store(node: ir.Node) -> bool:
    """A Cast of a fixed float16 tensor: how weights are stored small."""
    source = node.inputs[0] if node.op_type == "Cast" and node.domain == "" else None
    return source is not None and source.dtype == HALF and source.const_value is not None


def _drop_float_stores(graph: ir.Graph) -> None:
    """A Cast to float of what is float16 already, such as rows of a stored table, is left out: they are wanted so."""
    for node in list(graph):
        if node.op_type != "Cast" or _is_store(node) or node.outputs[0].is_graph_output():
            continue
        source = node.inputs[0]
        gather = producer(source, "Gather")
        if gather is not None and gather.inputs[0] is not None and gather.inputs[0].const_value is not None:
            table = gather.inputs[0]
            if table.dtype == HALF and node.attributes.get_int("to", 0) == FLOAT.value and source is not None:
                # Told to be float for the moment: every reader then decides as for any other value.
                whole = _widened(table, graph)
                gather.replace_input_with(0, whole)
                source.dtype = FLOAT
                node.outputs[0].replace_all_uses_with(source)


def _widened(stored: ir.Value, graph: ir.Graph) -> ir.Value:
    """A stored float16 tensor behind a Cast to float, which `_as_half` looks through."""
    node = ir.node("Cast", [stored], attributes={"to": FLOAT.value})
    node.outputs[0].shape, node.outputs[0].dtype = stored.shape, FLOAT
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def _kept_in_float(graph: ir.Graph, islands: Collection[str]) -> set[ir.Node]:
    """Nodes of the islands, what meets a value too large, and everything that leads to a sine or cosine, and these."""
    kept = {node for node in graph if node.name in islands or node.op_type == "DequantizeLinear" or _is_store(node)}
    behind = [node for node in graph if node.op_type in ANGLES]
    while behind:
        node = behind.pop()
        if node in kept:
            continue
        kept.add(node)
        behind += [made_by for made_by in (value.producer() for value in node.inputs if value is not None) if made_by]
    large = too_large(graph)
    return kept | {
        node for node in graph
        if node.meta.get(LARGEST, 0.0) > SAFE or any(value in large for value in (*node.inputs, *node.outputs))
    }  # fmt: skip


def too_large(graph: ir.Graph) -> set[ir.Value]:
    """Values that were seen to be near float16's end or beyond, and those that are the same numbers moved."""
    found = {
        value for node in graph for value in (*node.inputs, *node.outputs)
        if value is not None and value.meta.get(LARGEST, 0.0) > SAFE
    }  # fmt: skip
    while True:
        spread = {
            value
            for node in graph
            if node.op_type in MOVERS and node.domain == "" and node.inputs[0] is not None
            and (node.inputs[0] in found or any(output in found for output in node.outputs))
            for value in (node.inputs[0], *node.outputs)
        }  # fmt: skip
        if spread <= found:
            return found
        found |= spread


def _as_half(value: ir.Value, graph: ir.Graph, made: dict[ir.Value, ir.Value]) -> ir.Value:
    """A float32 value in float16: a constant as a new constant, another one cast where it is made."""
    if value in made:
        return made[value]
    made_by = value.producer()
    if made_by is not None and _is_store(made_by) and made_by.inputs[0] is not None:
        half = made_by.inputs[0]
    elif value.const_value is not None and not value.is_graph_input():
        half = _half_constant(value, graph)
    else:
        half = _cast(value, HALF, graph)
    made[value] = half
    return half


def _half_constant(value: ir.Value, graph: ir.Graph) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} is not fixed")
    return add_lazy(
        graph,
        f"{value.name}_half",
        HALF,
        tuple(int(size) for size in tensor.shape.numpy()),
        lambda: np.clip(tensor.numpy(), -LARGEST_HALF, LARGEST_HALF).astype(np.float16),
    )


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
