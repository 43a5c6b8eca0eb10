"""GroupNormalization, with the SiLU behind it, as com.microsoft GroupNorm, which CUDA has a kernel for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import MICROSOFT, Shapes, add_constant, constant_of, insert, only_reader, rank_of, replace
from tintype.kernels.group_norm import GroupNormAsLayerNorm

CHANNELS_LAST, CHANNELS_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)


class GroupNormChannelsLast(GroupNormAsLayerNorm):
    """GroupNormalization, and x * sigmoid(x) where it follows, as one node between two Transposes.

    The kernel takes channels last, as cuDNN's convolutions do; ONNX Runtime drops Transposes that meet.
    Not run on a GPU yet: what it means is tested on a processor, that the node is placed against the wheel's kernels.
    """

    name = "group_norm_channels_last"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same function, summed in fp32; fp32 error about 1e-6 on unit-variance data"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Pictures (batch, channels, height, width)."""
        return super().matches(node, shapes) and rank_of(shapes.of(node.inputs[0])) == 4

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
        last = insert(node, "Transpose", [node.inputs[0]], attributes={"perm": list(CHANNELS_LAST)})
        attributes = {
            "channels_last": 1,
            "groups": node.attributes.get_int("num_groups", 1),
            "epsilon": node.attributes.get_float("epsilon", 1e-5),
            "activation": int(silu is not None),
        }
        normed = insert(node, "GroupNorm", [last, *parts], domain=MICROSOFT, attributes=attributes)
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
