"""What nothing reads goes: after every kernel, so that none matches, or counts, what is left over."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def remove_unused(model: ir.Model) -> None:
    """Leave out nodes and weights that nothing reads, in place: what `RemoveUnusedNodesPass` does.

    That asks onnx for the schema of every node, to take the names off outputs that may be left out. Here it is called
    only for a graph that has a node with something else to leave out than itself.
    """
    graph = model.graph
    returned = set(graph.outputs)
    for node in reversed(graph):
        unread = [output for output in node.outputs if not output.uses() and output not in returned]
        if len(unread) == len(node.outputs):
            graph.remove(node, safe=True)
        elif unread or _has_more(node):
            RemoveUnusedNodesPass()(model)
            return
    kept = returned.union(graph.inputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in kept:
            del graph.initializers[name]


def _has_more(node: ir.Node) -> bool:
    """Whether the pass may change a node whose outputs are all read."""
    if (node.inputs and node.inputs[-1] is None) or "training_mode" in node.attributes:
        return True
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())
