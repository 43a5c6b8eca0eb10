"""Scaled dot-product attention as torch's first ONNX exporter writes it out: Attention, whole.

Gate: 1e-5 on data of unit variance; scores are scaled once, and sums are in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.export.canonical.facts import Facts, only_reader, producer

HEADS_SECOND = (0, 2, 1, 3)
CLOSED = -1e30  # a score with so much added is out of sight


@dataclass(frozen=True, slots=True)
class _Scores:
    """softmax(query key^T * scale + mask), by what it is made of."""

    query: ir.Value
    key: ir.Value  # transposed, (batch, heads, size, sequence)
    scale: float
    mask: NDArray[Any] | None


def attentions(model: ir.Model, facts: Facts) -> int:
    """Two products with a Softmax between them, on (batch, heads, sequence, size): Attention."""
    found = 0
    for softmax in list(model.graph):
        if softmax.op_type != "Softmax" or len(facts.dims(softmax.inputs[0])) != 4:
            continue
        if softmax.attributes.get_int("axis", -1) not in (-1, 3):
            continue
        product = _product_after(softmax, facts)
        scores = _scores(softmax.inputs[0], facts)
        if product is None or scores is None or product.inputs[1] is None:
            continue
        key = _untransposed(scores.key, product, facts)
        if key is None:
            continue
        inputs = [scores.query, key, product.inputs[1]]
        if scores.mask is not None:
            inputs.append(facts.constant_value(scores.mask, "attention_mask"))
        output = product.outputs[0]
        whole = facts.insert(
            product, "Attention", inputs, {"scale": scores.scale}, shapes=facts.shapes(output), like=output
        )
        facts.replace(output, whole.outputs[0])
        found += 1
    RemoveUnusedNodesPass()(model)
    return found


def _product_after(softmax: ir.Node, facts: Facts) -> ir.Node | None:
    """The product with the values; newer exporters put zeros in the place of rows that see nothing before it."""
    product = only_reader(softmax.outputs[0], "MatMul")
    if product is None:
        guarded = next((use.node for use in softmax.outputs[0].uses() if use.node.op_type == "Where"), None)
        is_nan = producer(guarded.inputs[0], "IsNaN") if guarded is not None else None
        if guarded is None or is_nan is None or is_nan.inputs[0] is not softmax.outputs[0]:
            return None
        if guarded.inputs[2] is not softmax.outputs[0] or facts.scalar(guarded.inputs[1]) != 0.0:
            return None
        product = only_reader(guarded.outputs[0], "MatMul")
        return product if product is not None and product.inputs[0] is guarded.outputs[0] else None
    return product if product.inputs[0] is softmax.outputs[0] else None


def _scores(value: ir.Value | None, facts: Facts) -> _Scores | None:
    mask, added = None, producer(value, "Add")
    if added is not None:
        masks = [_mask_of(each, facts) for each in added.inputs]
        if (masks[0] is None) == (masks[1] is None):
            return None
        value, mask = (added.inputs[1], masks[0]) if masks[0] is not None else (added.inputs[0], masks[1])
    value, scale = _unscaled(value, facts)
    product = producer(value, "MatMul")
    if product is None:
        return None
    query, query_scale = _unscaled(product.inputs[0], facts)
    key, key_scale = _unscaled(product.inputs[1], facts)
    if query is None or key is None:
        return None
    return _Scores(query, key, scale * query_scale * key_scale, mask)


def _unscaled(value: ir.Value | None, facts: Facts) -> tuple[ir.Value | None, float]:
    """What a value is a multiple of, and which."""
    factor = 1.0
    while (node := producer(value, "Mul", "Div")) is not None:
        by = facts.scalar(node.inputs[1])
        if by is None or by == 0.0 or facts.shapes(node.inputs[0]) != facts.shapes(value):
            break
        value, factor = node.inputs[0], factor * by if node.op_type == "Mul" else factor / by
    return value, factor


def _mask_of(value: ir.Value | None, facts: Facts) -> NDArray[Any] | None:
    """A mask that is the same for every picture of a batch, (1, 1, query, key); bool where it only opens and closes."""
    arrays = facts.arrays(value)
    if arrays is None or any(array.ndim != 4 or array.size == 0 for array in arrays):
        return None
    one = arrays[0][:1, :1]
    if not all(array.shape[2:] == one.shape[2:] and bool((array == one).all()) for array in arrays):
        return None
    if bool(((one == 0) | (one <= CLOSED)).all()):
        return np.asarray(one == 0)
    return np.asarray(one)


def _untransposed(value: ir.Value, before: ir.Node, facts: Facts) -> ir.Value | None:
    """The key as (batch, heads, sequence, size), from before its own Transpose."""
    transpose = producer(value, "Transpose")
    perm = tuple(transpose.attributes.get_ints("perm", ())) if transpose is not None else ()
    source = transpose.inputs[0] if transpose is not None else None
    if source is None or len(perm) != 4:
        return None
    turned = (perm[0], perm[1], perm[3], perm[2])
    if turned == (0, 1, 2, 3):
        return source
    shapes = [tuple(shape[axis] for axis in turned) for shape in facts.shapes(source)]
    node = facts.insert(before, "Transpose", [source], {"perm": list(turned)}, shapes=shapes, like=source)
    return node.outputs[0]
