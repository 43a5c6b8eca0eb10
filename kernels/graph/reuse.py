"""A denoiser's graph as two over the same weights: one also gives some of its inner values, the other takes them.

What the second one is given it doesn't compute, nor what was needed for that alone; given the values of the same step
it computes what the whole graph does. From one step to the next such values change little, so that most steps can do
with those of an earlier one: the deep features of a UNet (DeepCache: Ma et al. 2023), the outputs of its
cross-attentions (T-GATE: Zhang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tintype.kernels.graph.segments import constant_values, is_fixed
from tintype.kernels.graph.unused import remove_unused

WORDS = "encoder_hidden_states"  # the input that cross-attentions look at


def deep_features(graph: ir.Graph) -> list[ir.Value]:
    """What enters the up path at each skip connection from below, the outermost first: a UNet's branches."""
    return [value for node in skip_connections(graph) if (value := node.inputs[0]) is not None]


def skip_connections(graph: ir.Graph) -> list[ir.Node]:
    """Where each skip connection ends, the outermost first.

    That is a Concat of two images' channels, the first of which comes from below (Ronneberger et al. 2015).
    """
    joins = [node for node in graph if node.op_type == "Concat" and node.domain == "" and _joins_channels(node)]
    return joins[::-1]


def cross_attentions(graph: ir.Graph) -> list[ir.Value]:
    """What each cross-attention adds to its image, after its last projection, in the graph's order.

    The sizes in the graph must be numbers (`dims.fold_sizes`), as what only names a value anew is passed by.
    """
    fixed = constant_values(graph)
    words = next((value for value in graph.inputs if value.name == WORDS), None)
    of_words = {} if words is None else dependent(graph, words)
    found = []
    for node in graph:
        keys = node.inputs[1] if node.op_type == "Attention" else None
        if keys is None or node.inputs[0] in of_words or keys not in of_words:
            continue
        found.append(projected(node.outputs[0], fixed))
    return found


def give_values(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Let a model give inner values beside its own outputs, under their names."""
    model.graph.outputs.extend(value for value in values if not value.is_graph_output())


def take_values(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Let a model take these values as inputs, under their names, in place of computing them.

    Its own inputs stay, even those that nothing reads any more.
    """
    for value in values:
        given = ir.Value(name=value.name, shape=value.shape, type=value.type)
        value.name = f"{value.name}_computed"
        value.replace_all_uses_with(given)
        model.graph.inputs.append(given)
    remove_unused(model)


def _joins_channels(node: ir.Node) -> bool:
    images = [value for value in node.inputs if value is not None and value.shape is not None and len(value.shape) == 4]
    return len(images) == len(node.inputs) == 2 and node.attributes.get_int("axis", 0) in (1, -3)


def dependent(graph: ir.Graph, source: ir.Value) -> dict[ir.Value, None]:
    """What comes of one input, and of constants beside it, alone."""
    fixed, found = constant_values(graph), {source: None}
    for node in graph:
        read = [value for value in node.inputs if value is not None and not is_fixed(value) and value not in fixed]
        if read and all(value in found for value in read):
            found |= dict.fromkeys(node.outputs)
    return found


def projected(value: ir.Value, fixed: set[ir.Value]) -> ir.Value:
    """What becomes of a value until it meets another one that isn't fixed."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        others = [each for each in use.node.inputs if each is not None and each is not value]
        if not all(is_fixed(each) or each in fixed for each in others) or len(use.node.outputs) != 1:
            break
        value = use.node.outputs[0]
    return value
