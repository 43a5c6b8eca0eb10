"""Attention as com.microsoft MultiHeadAttention on 3-D tensors, whose CPU kernel is a flash attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shape,
    Shapes,
    add_constant,
    constant_of,
    fixed_dim,
    insert,
    only_reader,
    permutation,
    producer,
    rank_of,
    replace,
)

HEADS_SECOND = (0, 2, 1, 3)  # (batch, sequence, heads, size) <-> (batch, heads, sequence, size)


class AttentionAsMultiHead(Kernel):
    """ONNX Attention on (batch, heads, sequence, size), with its Reshape and Transpose neighbours, as one node.

    Scores are never whole in memory (Rabe & Staats 2021, Dao et al. 2022), except under a mask.
    """

    name = "attention"
    targets: ClassVar[tuple[str, ...]] = ("cpu", "webgpu", "cuda", "directml")
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(("webgpu", "cuda", "directml"), "attention")
    exactness = "the same sums in another order: fp32 error below 1e-5 on unit-variance data"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Plain attention: no cache, no softcap, as many key heads as query heads."""
        if node.op_type != "Attention" or node.domain != "" or len(node.outputs) > 1:
            return False
        if any(value is not None for value in node.inputs[4:]):
            return False
        query, key, value = (shapes.of(tensor) for tensor in node.inputs[:3])
        if query is None or key is None or value is None or not len(query) == len(key) == len(value) == 4:
            return False
        sizes = (query[1], query[3], key[1], key[3], value[1], value[3])
        if not all(isinstance(size, int) for size in sizes) or not query[1] == key[1] == value[1]:
            return False
        if node.attributes.get_float("softcap", 0.0) != 0.0:
            return False
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if node.attributes.get_int("is_causal", 0) == 1:
            return mask is None and query[2] is not None and query[2] == key[2]
        return _mask_fits(mask, query, key, shapes)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        heads, size, value_size = (
            fixed_dim(node.inputs[0], 1),
            fixed_dim(node.inputs[0], 3),
            fixed_dim(node.inputs[2], 3),
        )
        inputs: list[ir.Value | None] = [
            _joined(tensor, node, graph) for tensor in node.inputs[:3] if tensor is not None
        ]
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None:
            inputs += [None, None, score_bias(mask, node, graph)]
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "scale": node.attributes.get_float("scale", 1.0 / math.sqrt(size)),
        }
        if node.attributes.get_int("is_causal", 0):
            attributes["unidirectional"] = 1
        joined = insert(node, "MultiHeadAttention", inputs, domain=MICROSOFT, attributes=attributes)
        _hand_over(node, joined, heads, value_size, graph)

    @staticmethod
    def reference(
        query: NDArray[Any],
        key: NDArray[Any],
        value: NDArray[Any],
        mask: NDArray[Any] | None = None,
        scale: float = 0.0,
    ) -> NDArray[Any]:
        """(batch, heads, sequence, size) each; mask is bool (True = may look) or is added; scale 0 is 1/sqrt(size)."""
        query, key, value = (tensor.astype(np.float64) for tensor in (query, key, value))
        scores = query @ key.swapaxes(-1, -2) * (scale or 1.0 / math.sqrt(query.shape[-1]))
        if mask is not None:
            scores = np.where(mask, scores, -np.inf) if mask.dtype == np.bool_ else scores + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return (weights / weights.sum(axis=-1, keepdims=True)) @ value


def _joined(tensor: ir.Value, node: ir.Node, graph: ir.Graph) -> ir.Value:
    """(batch, heads, sequence, size) as (batch, sequence, heads * size), from before its own split if it has one."""
    width = fixed_dim(tensor, 1) * fixed_dim(tensor, 3)
    transpose = producer(tensor, "Transpose")
    if transpose is not None and permutation(transpose) == HEADS_SECOND:
        split = transpose.inputs[0]
        reshape = producer(split, "Reshape")
        if reshape is not None:
            source = reshape.inputs[0]
            shape = Shapes().of(source)
            if source is not None and shape is not None and len(shape) == 3 and shape[2] == width:
                return source
    else:
        split = insert(node, "Transpose", [tensor], attributes={"perm": list(HEADS_SECOND)})
    target = add_constant(graph, np.array([0, 0, width], np.int64), f"joined_heads_{width}")
    return insert(node, "Reshape", [split, target])


def _hand_over(node: ir.Node, joined: ir.Value, heads: int, size: int, graph: ir.Graph) -> None:
    """Give the result to the readers of `node`, without splitting heads again where they would join them at once."""
    output = node.outputs[0]
    transpose = only_reader(output, "Transpose")
    if transpose is not None and permutation(transpose) == HEADS_SECOND:
        reshape = only_reader(transpose.outputs[0], "Reshape")
        if reshape is not None:
            shape = Shapes().of(reshape.outputs[0])
            if shape is not None and len(shape) == 3 and shape[2] == heads * size:
                replace(reshape.outputs[0], joined)
                return
    target = add_constant(graph, np.array([0, 0, heads, size], np.int64), f"split_heads_{heads}_{size}")
    split = insert(node, "Reshape", [joined, target])
    replace(output, insert(node, "Transpose", [split], attributes={"perm": list(HEADS_SECOND)}, like=output))


def _mask_fits(mask: ir.Value | None, query: Shape, key: Shape, shapes: Shapes) -> bool:
    """Whether a mask is (query, key) in its last dims; MultiHeadAttention broadcasts the dims before, not these."""
    if mask is None:
        return True
    shape = shapes.of(mask)
    if shape is None or not 2 <= len(shape) <= 4 or mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        return False
    leading = ((1, query[0]), (1, query[1]))[4 - len(shape) :]
    return shape[-2:] == (query[2], key[2]) and all(dim in known for dim, known in zip(shape, leading, strict=False))


def score_bias(mask: ir.Value, node: ir.Node, graph: ir.Graph) -> ir.Value:
    """A mask as what is added to the scores, 4-D; one that is fixed is taken from before its Expand over the batch."""
    expand = producer(mask, "Expand")
    fixed, full = constant_of(expand.inputs[0]) if expand is not None else None, Shapes().of(mask)
    if fixed is None or full is None or fixed.shape[-2:] != full[-2:]:
        fixed = constant_of(mask)
    lowest = np.finfo(np.float32).min
    if fixed is not None:
        added = np.where(fixed, 0.0, lowest) if fixed.dtype == np.bool_ else fixed
        added = added.reshape((1,) * (4 - added.ndim) + added.shape)
        return add_constant(graph, added.astype(np.float32), f"{mask.name}_bias")
    rank = rank_of(full)
    if mask.dtype == ir.DataType.BOOL:
        nothing = add_constant(graph, np.array(0.0, np.float32), "mask_open")
        closed = add_constant(graph, np.array(lowest, np.float32), "mask_closed")
        mask = insert(node, "Where", [mask, nothing, closed])
    if rank < 4:
        axes = add_constant(graph, np.arange(4 - rank, dtype=np.int64), f"first_{4 - rank}_axes")
        mask = insert(node, "Unsqueeze", [mask, axes])
    return mask
