"""Weights stored as integers, as the floats that they stand for, on a device that keeps float16 as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Shapes, add_lazy
from tintype.kernels.portable.plain_float import FloatWeights


class FloatIntegers(FloatWeights):
    """DequantizeLinear of fixed integers as floats, each made when it is written.

    What is stored as float16 stays, for `half` to take.
    """

    name = "float_integers"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """DequantizeLinear of a fixed tensor."""
        return node.op_type == "DequantizeLinear" and super().matches(node, shapes)

    @staticmethod
    def constant(
        graph: ir.Graph, name: str, shape: tuple[int, ...], values: Callable[[], NDArray[np.float32]]
    ) -> ir.Value:
        return add_lazy(graph, name, ir.DataType.FLOAT, shape, values)
