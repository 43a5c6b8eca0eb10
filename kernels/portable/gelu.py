"""ONNX Gelu as com.microsoft's, for a provider that has kernels of that one only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, Kernel, Shapes, insert, replace


class GeluAsMicrosofts(Kernel):
    """Gelu as Gelu of com.microsoft, or FastGelu where it is the approximation by tanh that is meant."""

    name = "gelu"
    targets = ("directml",)
    exactness = "the same function"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        return node.op_type == "Gelu" and node.domain == ""

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        operator = "FastGelu" if _by_tanh(node) else "Gelu"
        output = node.outputs[0]
        replace(output, insert(node, operator, [node.inputs[0]], domain=MICROSOFT, like=output))

    @staticmethod
    def reference(*arrays: Any, by_tanh: bool = False) -> NDArray[Any]:
        """x of any shape."""
        x = np.asarray(arrays[0], np.float64)
        if by_tanh:
            return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
        return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _by_tanh(node: ir.Node) -> bool:
    return node.attributes.get_string("approximate", "none") == "tanh"
