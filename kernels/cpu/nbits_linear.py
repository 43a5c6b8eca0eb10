"""Linear layers whose weights stay four bits wide, as com.microsoft MatMulNBits with inputs of 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, only_reader, rank_of, replace
from tintype.kernels.graph.blocks import SIZES, bits_of, blocked_weight, is_blocked, nbits_product
from tintype.kernels.graph.linear import fixed_bias, width_of

INTEGERS = 4  # MatMulNBits' accuracy_level: its inputs may be rounded to 8 bits


class NBitsLinear(Kernel):
    """MatMul with a weight of four bits by block, and its bias, as a MatMulNBits that multiplies integers.

    ONNX Runtime makes MatMulNBits of a layer that is left as it is, too, and turns its weights to floats piece by
    piece. Here each 32 inputs of a row are rounded by their own largest, where the processor has such products and the
    build lets weights be packed; elsewhere it is the same as the layer as it is.
    """

    name = "nbits_linear"
    targets = ("cpu",)
    exactness = "inputs rounded to 8 bits by the largest of each 32: below half a percent of the output's deviation"
    lossy = True
    measured = True
    by_default = True
    likely_seconds = 0.8

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A float input, and a weight whose blocks MatMulNBits knows."""
        if node.op_type != "MatMul" or node.domain != "" or rank_of(shapes.of(node.inputs[0])) < 2:
            return False
        if node.inputs[0] is None or node.inputs[0].dtype not in (None, ir.DataType.FLOAT):
            return False
        weight = node.inputs[1]
        made_by = weight.producer() if weight is not None else None
        if made_by is None or not is_blocked(weight) or bits_of(weight) != 4:
            return False
        return made_by.attributes.get_int("block_size", 0) in SIZES

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        add = _bias_after(node)
        return (node,) if add is None else (node, add)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        weight, add, output, bias = blocked_weight(node.inputs[1]), _bias_after(node), node.outputs[0], None
        if weight is None:
            raise ValueError(f"{node.name} has no weight of four bits")
        if add is not None:
            bias, output = fixed_bias(add, output, weight.integers.shape[1]), add.outputs[0]
        replace(output, nbits_product(node, weight, graph, bias=bias, accuracy_level=INTEGERS))

    @staticmethod
    def reference(
        x: NDArray[Any],
        integers: NDArray[Any],
        scale: NDArray[Any],
        zero_point: NDArray[Any],
        bias: NDArray[Any] | float = 0.0,
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs), scale and zero_point (blocks, outputs)."""
        blocks, outputs = scale.shape
        centred = integers.reshape(blocks, -1, outputs).astype(np.float64) - zero_point[:, np.newaxis]
        return rounded_by_block(x, blocks) @ (centred * scale[:, np.newaxis]).reshape(integers.shape) + bias


def rounded_by_block(x: NDArray[Any], blocks: int) -> NDArray[np.float64]:
    """x (..., inputs) to 8 bits by the largest number of each block, as floats."""
    parts = x.reshape(*x.shape[:-1], blocks, -1).astype(np.float64)
    steps = np.abs(parts).max(axis=-1, keepdims=True) / 127
    rounded = np.rint(np.divide(parts, steps, out=np.zeros_like(parts), where=steps > 0)) * steps
    return np.asarray(rounded.reshape(x.shape))


def _bias_after(node: ir.Node) -> ir.Node | None:
    """The Add of a bias that alone reads a MatMul."""
    add = only_reader(node.outputs[0], "Add")
    return add if fixed_bias(add, node.outputs[0], width_of(node.inputs[1])) is not None else None
