"""GroupNormalization, with the SiLU behind it, as com.microsoft GroupNorm, which CUDA has a kernel for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import (
    MICROSOFT,
    Shapes,
    add_constant,
    constant_of,
    insert,
    note_inside,
    note_largest,
    only_reader,
    rank_of,
    replace,
)
from tintype.kernels.cuda.nhwc_conv import CHANNELS_LAST, CHANNELS_SECOND, channels_last, turned_shape
from tintype.kernels.portable.group_norm import GroupNorm

MOST_GROUPS, MOST_CHANNELS_A_GROUP = 32, 512


class GroupNormChannelsLast(GroupNorm):
    """GroupNormalization, and x * sigmoid(x) where it follows, as one node between two Transposes.

    The kernel takes channels last, as cuDNN's convolutions do; `channels_last` lets Transposes meet. It reads two
    channels at a time, and adds the sums of its blocks by atomic operations, in no fixed order: two runs may differ in
    the last bits. Not run on a GPU yet.
    """

    name = "group_norm_channels_last"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same function, summed in fp32; fp32 error about 1e-6 on unit-variance data"
    balanced_only = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Pictures (batch, channels, height, width) of at most 32 groups, each of an even number of channels."""
        shape = shapes.of(node.inputs[0]) if node.inputs else None
        if not super().matches(node, shapes) or rank_of(shape) != 4 or shape is None:
            return False
        groups, channels = node.attributes.get_int("num_groups", 1), shape[1]
        if not isinstance(channels, int) or groups > MOST_GROUPS or channels % (2 * groups):
            return False
        return channels // groups <= MOST_CHANNELS_A_GROUP

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        output, silu = node.outputs[0], _silu(node.outputs[0])
        gamma, beta = (constant_of(node.inputs[index]) for index in (1, 2))
        if gamma is None or beta is None:
            raise ValueError(f"{node.name} has no fixed scale or bias")
        names = [node.inputs[index] for index in (1, 2)]
        parts = [
            add_constant(graph, data.astype(np.float32), f"{value.name if value is not None else 'group_norm'}_float")
            for data, value in zip((gamma, beta), names, strict=True)
        ]
        last = channels_last(node.inputs[0], node)
        attributes = {
            "channels_last": 1,
            "groups": node.attributes.get_int("num_groups", 1),
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
            "activation": int(silu is not None),
        }
        normed = insert(node, "GroupNorm", [last, *parts], domain=MICROSOFT, attributes=attributes)
        normed.shape, normed.dtype = turned_shape(output, CHANNELS_LAST), ir.DataType.FLOAT
        note_largest(normed, output if silu is None else silu)
        note_inside(normed, output)
        back = insert(node, "Transpose", [normed], attributes={"perm": list(CHANNELS_SECOND)}, like=output)
        replace(output if silu is None else silu, back)


def _silu(value: ir.Value) -> ir.Value | None:
    """The output of x * sigmoid(x) when nobody else reads x."""
    readers = {use.node for use in value.uses()}
    sigmoid = next((node for node in readers if node.op_type == "Sigmoid" and node.domain == ""), None)
    if sigmoid is None or len(readers) != 2 or value.is_graph_output():
        return None
    product = only_reader(sigmoid.outputs[0], "Mul")
    if product is None or product not in readers or set(product.inputs) != {value, sigmoid.outputs[0]}:
        return None
    return product.outputs[0]
