"""Small linear layers with weights of integers as products with floats, where being small bought nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, constant_of, producer
from tintype.kernels.portable.plain_float import FloatWeights

LARGEST_BYTES = 2**20  # of a weight as floats: a bundle's larger ones stay as small as they are


class FloatLinear(Kernel):
    """MatMul or Gemm with a small fixed DequantizeLinear weight, which is made float when the graph is built.

    ONNX Runtime makes MatMulNBits of a layer that is left as it is: that turns integers to floats at each call, which
    costs more than the product itself where few rows share it.
    """

    name = "float_linear"
    targets = ("cpu",)
    exactness = "the same weights, turned to floats once in place of at each call"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A weight of integers that nobody else reads, no larger as floats than LARGEST_BYTES."""
        if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or node.inputs[1] is None:
            return False
        stored = producer(node.inputs[1], "DequantizeLinear")
        if stored is None or len(node.inputs[1].uses()) != 1 or not FloatWeights().matches(stored, shapes):
            return False
        integers = constant_of(stored.inputs[0])
        return integers is not None and integers.size * np.dtype(np.float32).itemsize <= LARGEST_BYTES

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        stored = producer(node.inputs[1], "DequantizeLinear")
        if stored is None:
            raise ValueError(f"{node.name} has no weight of integers")
        FloatWeights().rewrite(stored, graph)

    @staticmethod
    def reference(
        x: NDArray[Any], integers: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | int = 0
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs), scale and zero_point (outputs,) or one."""
        return x.astype(np.float64) @ FloatWeights.reference(integers, scale, zero_point)
