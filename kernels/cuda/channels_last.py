"""Transposes between channels last and channels second moved down until two meet: a UNet keeps one at each end.

Kernels leave a Transpose before and behind each node that wants its channels last. Here what lies between two such
nodes is computed with channels last too, where that needs no further Transpose of a picture.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import (
    GraphPass,
    add_constant,
    constant_of,
    describe,
    insert,
    note_largest,
    permutation,
    producer,
    replace,
)
from tintype.kernels.cuda.nhwc_conv import CHANNELS_LAST, CHANNELS_SECOND, channels_last, turned_shape

ELEMENTWISE = frozenset(
    ("Add", "Cast", "Clip", "Div", "Erf", "Gelu", "Identity", "Mul", "Relu", "Sigmoid", "Sub", "Swish", "Tanh")
)


class KeepChannelsLast(GraphPass):
    """Transpose, then an elementwise node, Concat, Resize or Pad, the other way round; pairs that meet go."""

    name = "channels_last"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same bytes"
    balanced_only = True

    def apply(self, model: ir.Model) -> int:
        graph, changed = model.graph, 0
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type == "Transpose" and permutation(node) == CHANNELS_LAST:
                source = _turned(node.inputs[0])
                if source is not None and not node.outputs[0].is_graph_output():
                    note_largest(source, node.outputs[0])
                    node.outputs[0].replace_all_uses_with(source)
                    changed += 1
            elif _sink(node, graph):
                changed += 1
        return changed


def _turned(value: ir.Value | None) -> ir.Value | None:
    """What a Transpose to channels second reads, when it makes this value."""
    node = producer(value, "Transpose")
    return node.inputs[0] if node is not None and permutation(node) == CHANNELS_SECOND else None


def _sink(node: ir.Node, graph: ir.Graph) -> bool:
    """Compute this node with channels last, if it pays."""
    output = node.outputs[0] if node.outputs else None
    if output is None or len(node.outputs) != 1 or not node.inputs or output.shape is None or len(output.shape) != 4:
        return False
    if _turned(node.inputs[0]) is None and node.op_type not in ELEMENTWISE:
        return False
    attributes = dict(node.attributes)
    if node.op_type in ELEMENTWISE:
        inputs = _operands(node, graph)
    elif node.op_type == "Concat" and node.attributes.get_int("axis", 0) in (1, -3):
        attributes["axis"] = ir.AttrInt64("axis", 3)
        inputs = _operands(node, graph)
    elif node.op_type in ("Resize", "Pad") and "axes" not in attributes:
        inputs = _sized(node, graph)
    else:
        return False
    if inputs is None:
        return False
    moved = insert(node, node.op_type, inputs, attributes=attributes)
    describe(moved, turned_shape(output, CHANNELS_LAST), output.dtype)
    note_largest(moved, output)
    replace(output, insert(node, "Transpose", [moved], attributes={"perm": list(CHANNELS_SECOND)}, like=output))
    return True


def _operands(node: ir.Node, graph: ir.Graph) -> list[ir.Value | None] | None:
    """The inputs of an elementwise node or Concat with channels last; None when more would be turned than saved."""
    turned = [_turned(value) for value in node.inputs]
    spare = sum(value is not None for value in turned)
    if not spare:
        return None
    found: list[ir.Value | None] = []
    for value, already in zip(node.inputs, turned, strict=True):
        if value is None or already is not None:
            found.append(already)
            continue
        known = constant_of(value)
        if known is not None and known.size == 1:
            found.append(value)
        elif known is not None and known.ndim in (3, 4) and node.op_type != "Concat":
            data = known.reshape((1,) * (4 - known.ndim) + known.shape).transpose(CHANNELS_LAST)
            found.append(add_constant(graph, data, f"{value.name}_channels_last"))
        elif known is None and _is_one_a_channel(value):
            found.append(channels_last(value, node))  # moves no data
        elif known is None and spare and value.shape is not None and len(value.shape) == 4:
            spare -= 1  # in place of the Transpose that the other one would have kept
            found.append(channels_last(value, node))
        else:
            return None
    return found


def _is_one_a_channel(value: ir.Value) -> bool:
    """(batch, channels, 1, 1)"""
    return value.shape is not None and len(value.shape) == 4 and tuple(value.shape[2:]) == (1, 1)


def _sized(node: ir.Node, graph: ir.Graph) -> list[ir.Value | None] | None:
    """The inputs of a Resize or Pad of a turned picture; sizes, scales and pads follow the axes."""
    found: list[ir.Value | None] = [_turned(node.inputs[0])]
    by_axis = (2, 3) if node.op_type == "Resize" else (1,)
    for index, value in enumerate(node.inputs[1:], start=1):
        known = constant_of(value)
        if value is None or index not in by_axis or (known is not None and known.size == 0):
            if node.op_type == "Resize" and index == 1 and known is not None and known.size:
                return None  # a region of interest
            found.append(value)
            continue
        if known is None and node.op_type == "Pad":
            return None
        axes = np.array([*CHANNELS_LAST, *(4 + axis for axis in CHANNELS_LAST)][: 8 if node.op_type == "Pad" else 4])
        if known is not None:
            found.append(add_constant(graph, known[axes], f"{value.name}_channels_last"))
        else:
            order = add_constant(graph, axes.astype(np.int64), "channels_last_axes")
            gathered = insert(node, "Gather", [value, order], like=value)
            found.append(gathered)
    return found
