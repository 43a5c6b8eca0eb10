"""Query, key and value of self-attention as one product with three times the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, Kernel, Shapes, add_constant, constant_of, insert, producer, replace
from tintype.kernels.graph.linear import half_weight


class FusedQkv(Kernel):
    """Three MatMuls of one input before a MultiHeadAttention as one MatMul and a Split.

    The input is packed once in place of three times; the Split copies what the product wrote, so that it may not pay.
    """

    name = "fused_qkv"
    targets = ("cpu",)
    exactness = "the same sums; a product's order of summing may change with its width"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """The MatMul of the query, when key and value come from the same input with as many fixed float columns."""
        return _three(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = _three(node, Shapes())
        # The attention too: without it, nothing would tell in a model of the layer alone which product is which.
        return (node,) if found is None else (*found, next(iter(node.outputs[0].uses())).node)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _three(node, Shapes())
        if found is None:
            raise ValueError(f"{node.name} is no query beside a key and a value")
        weights = [_weight(member) for member in found]
        joined = np.concatenate([weight for weight in weights if weight is not None], axis=1)
        name = node.inputs[1].name if node.inputs[1] is not None else node.name
        product = insert(node, "MatMul", [node.inputs[0], add_constant(graph, joined, f"{name}_qkv")])
        split = insert(node, "Split", [product], attributes={"axis": -1, "num_outputs": 3}, outputs=3).producer()
        if split is None:
            raise ValueError("a node without outputs")
        for member, part in zip(found, split.outputs, strict=True):
            replace(member.outputs[0], part)

    @staticmethod
    def reference(x: NDArray[Any], *weights: NDArray[Any]) -> NDArray[Any]:
        """x (..., inputs), three weights (inputs, columns) -> (3, ..., columns)."""
        return np.stack([x.astype(np.float64) @ weight for weight in weights])


def _three(node: ir.Node, shapes: Shapes) -> tuple[ir.Node, ...] | None:
    """The MatMuls of query, key and value, when this node is the query's."""
    if node.op_type != "MatMul" or node.domain != "":
        return None
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    attention = uses[0].node
    if attention.op_type != "MultiHeadAttention" or attention.domain != MICROSOFT or uses[0].idx != 0:
        return None
    members = [producer(value, "MatMul") for value in attention.inputs[:3]]
    found = tuple(member for member in members if member is not None)
    weights = [_weight(member) for member in found]
    if len(found) != 3 or len(set(found)) != 3 or any(weight is None for weight in weights):
        return None
    same = all(member.inputs[0] is node.inputs[0] and len(member.outputs[0].uses()) == 1 for member in found)
    widths = {weight.shape for weight in weights if weight is not None}
    return found if same and len(widths) == 1 and shapes.of(node.inputs[0]) is not None else None


def _weight(node: ir.Node) -> NDArray[np.float32] | None:
    """A float weight (inputs, columns), stored as it is or as fp16."""
    known, half = constant_of(node.inputs[1]), half_weight(node.inputs[1])
    weight = known if known is not None else half
    if weight is None or weight.ndim != 2 or weight.dtype not in (np.float32, np.float16):
        return None
    return weight.astype(np.float32)
