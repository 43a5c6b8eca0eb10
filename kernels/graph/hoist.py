"""What depends on the prompt alone is computed once a prompt: cross-attention's keys and values, above all."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from tintype.kernels.graph import image_tokens, low_rank
from tintype.kernels.graph.segments import value_nbytes
from tintype.kernels.graph.unused import remove_unused

# What stays the same over the steps of a picture.
HELD_INPUTS = ("encoder_hidden_states", "text_embeds", "time_ids", "controlnet_cond")
_PREFIXES = (low_rank.PREFIX, image_tokens.PREFIX, image_tokens.MASK_PREFIX)


def split_held(
    model: ir.Model, held: tuple[str, ...] = HELD_INPUTS, *, largest_bytes: int | None = None
) -> ir.Model | None:
    """Move every node that depends on the held inputs, those for LoRAs and pictures among them, and constants alone
    into a model of its own.

    Returns that model, whose outputs have become inputs of the one given; None when nothing depends on them alone.
    Exact: the same nodes on the same numbers. An input that only moved nodes read goes with them.
    largest_bytes: what is handed over may take no more than that, and nothing is moved where it would; None is no
    bound. Keys and values of Stable Diffusion XL's 70 layers are 55 MiB a prompt.
    """
    kept = [value for value in model.graph.inputs if value.name in held or str(value.name).startswith(_PREFIXES)]
    moved, values = _dependent(model.graph, kept)
    inputs = [value for value in kept if any(use.node in moved for use in value.uses())]
    handed = [
        value
        for node in model.graph
        if node in moved
        for value in node.outputs
        if value in values and (value.is_graph_output() or any(use.node not in moved for use in value.uses()))
    ]
    if not handed or any(value.is_graph_output() for value in handed):
        return None
    if any(value.type is None or value.shape is None for value in handed):
        ShapeInferencePass()(model)  # an input has to say what it is, and some devices make nodes that don't
    if largest_bytes is not None and sum(map(value_nbytes, handed)) > largest_bytes:
        return None
    once = ir.Model(ir.convenience.extract(model.graph, inputs, handed), ir_version=model.ir_version)
    once.opset_imports.update(model.opset_imports)
    for value in handed:
        given = ir.Value(name=f"held_{value.name}", shape=value.shape, type=value.type)
        model.graph.inputs.append(given)
        value.replace_all_uses_with(given)
    for made, value in zip(once.graph.outputs, handed, strict=True):
        made.name = f"held_{value.name}"
    remove_unused(model)
    for value in inputs:
        if not value.uses():
            model.graph.inputs.remove(value)
    return once


def _dependent(graph: ir.Graph, inputs: list[ir.Value]) -> tuple[set[ir.Node], set[ir.Value]]:
    """Nodes whose inputs are all held or fixed, at least one of them held, and what those nodes give."""
    values, moved = set(inputs), set[ir.Node]()
    stored: set[ir.Value] = set()  # what comes of constants alone
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        fixed = [v for v in read if (v.const_value is not None and not v.is_graph_input()) or v in stored]
        if len(fixed) == len(read):
            stored.update(node.outputs)
        elif all(value in values or value in fixed for value in read):
            values.update(node.outputs)
            moved.add(node)
    return moved, values
