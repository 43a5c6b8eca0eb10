"""GroupNormalization as InstanceNormalization over each group, which every provider has."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import Shapes, add_constant, insert, replace
from tintype.kernels.portable.group_norm import GroupNorm, by_channel


class GroupNormAsInstanceNorm(GroupNorm):
    """GroupNormalization as Reshape, InstanceNormalization, Reshape, and the affine part by channel.

    Left to ONNX Runtime it becomes some fifteen nodes, a few of them shape arithmetic on the host.
    """

    name = "group_norm_instance"
    targets = ("webgpu", "cuda", "directml", "openvino", "coreml", "qnn", "tensorrt-rtx")
    exactness = "the same function; fp32 error about 1e-6 on unit-variance data"

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        source, output = node.inputs[0], node.outputs[0]
        groups = node.attributes.get_int("num_groups", 1)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        target = add_constant(graph, np.array([0, groups, -1], np.int64), f"groups_{groups}")
        ones = add_constant(graph, np.ones(groups, np.float32), f"ones_{groups}")
        zeros = add_constant(graph, np.zeros(groups, np.float32), f"zeros_{groups}")
        grouped = insert(node, "Reshape", [source, target])
        normed = insert(node, "InstanceNormalization", [grouped, ones, zeros], attributes={"epsilon": epsilon})
        normed = insert(node, "Reshape", [normed, _shape_of(source, node, graph)], like=output)
        normed = insert(node, "Mul", [normed, by_channel(node, 1, graph)], like=output)
        replace(output, insert(node, "Add", [normed, by_channel(node, 2, graph)], like=output))


def _shape_of(source: ir.Value | None, node: ir.Node, graph: ir.Graph) -> ir.Value:
    """The source's shape as a constant where only its batch is open, else as a node."""
    shape = Shapes().of(source) or ()
    if all(isinstance(size, int) for size in shape[1:]):
        fixed = np.array([0, *shape[1:]], np.int64)
        return add_constant(graph, fixed, "shape_" + "_".join(map(str, fixed)))
    return insert(node, "Shape", [source])
