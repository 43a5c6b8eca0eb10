"""Attention as two products and a Softmax, of operators that every provider has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import Shapes, add_constant, fixed_dim, insert, permutation, producer, replace
from tintype.kernels.portable.attention import HEADS_SECOND, AttentionAsMultiHead, score_bias

KEYS_LAST = (0, 2, 3, 1)  # (batch, sequence, heads, size) -> (batch, heads, size, sequence)


class AttentionAsProducts(AttentionAsMultiHead):
    """ONNX Attention written out: softmax(scale * query @ key^T + mask) @ value, with the scores whole in memory.

    For providers without an attention kernel, and for devices that compute theirs wrong: WebGPU's, where a subgroup has
    four lanes, is off by its own size.
    """

    name = "attention_products"
    targets = ("webgpu", "cuda", "directml", "openvino", "coreml", "qnn", "tensorrt-rtx")
    needs: ClassVar[Mapping[str, str]] = {}
    exactness = "the same sums: fp32 error below 1e-5 on unit-variance data"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """As for one node; a causal one only where the length is fixed, so that its mask can be."""
        if not super().matches(node, shapes):
            return False
        query = shapes.of(node.inputs[0])
        causal = node.attributes.get_int("is_causal", 0) == 1
        return not causal or (query is not None and isinstance(query[2], int))

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        query, key, value = node.inputs[:3]
        scale = node.attributes.get_float("scale", 1.0 / math.sqrt(fixed_dim(query, 3)))
        factor = add_constant(graph, np.array(scale, np.float32), f"scale_{fixed_dim(query, 3)}")
        scores = insert(node, "MatMul", [insert(node, "Mul", [query, factor], like=query), _keys_last(key, node)])
        mask = _added(node, graph)
        if mask is not None:
            scores = insert(node, "Add", [scores, mask])
        weights = insert(node, "Softmax", [scores], attributes={"axis": -1})
        replace(node.outputs[0], insert(node, "MatMul", [weights, value], like=node.outputs[0]))


def _keys_last(key: ir.Value | None, node: ir.Node) -> ir.Value:
    """Keys with the sequence last: one Transpose with the one that put the heads second, if there is one."""
    transpose = producer(key, "Transpose")
    if transpose is not None and permutation(transpose) == HEADS_SECOND:
        return insert(node, "Transpose", [transpose.inputs[0]], attributes={"perm": list(KEYS_LAST)})
    return insert(node, "Transpose", [key], attributes={"perm": [0, 1, 3, 2]})


def _added(node: ir.Node, graph: ir.Graph) -> ir.Value | None:
    """What is added to the scores: the mask, or the future closed off where attention is causal."""
    if node.attributes.get_int("is_causal", 0) == 1:
        length = fixed_dim(node.inputs[0], 2)
        closed = np.triu(np.full((length, length), np.finfo(np.float32).min, np.float32), 1)
        return add_constant(graph, closed, f"future_{length}")
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    return None if mask is None else score_bias(mask, node, graph)
