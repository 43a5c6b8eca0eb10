"""int8 weights of integer products as uint8, where products of uint8 and int8 would not be exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, add_constant, add_lazy, constant_of, insert, replace

SHIFT = 128
_PRODUCTS = ("Conv", "MatMul", "Gemm")


class UnsignedWeights(Kernel):
    """DequantizeLinear of an int8 weight as one of uint8: integers and zero point are both moved by 128.

    x86 without VNNI multiplies uint8 by int8 in pairs whose sum saturates at 16 bits, up to 14 % of an output. ONNX
    Runtime's products of uint8 by uint8 widen first and are exact, 1.2 to 1.6 times as slow and still 1.3 to 2.3 times
    as fast as float32 (FINDINGS.md). Every kernel after this one takes weights of either type.
    """

    name = "unsigned_weights"
    targets = ("cpu",)
    unless: ClassVar[Mapping[str, str]] = {"cpu": "mixed_products"}
    exactness = "the same weights"
    balanced_only = True  # an exact build has no integer products

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A fixed int8 tensor, quantized by tensor or axis, that only products read, as their weight."""
        if node.op_type != "DequantizeLinear" or node.domain != "" or node.attributes.get_int("block_size", 0) != 0:
            return False
        integers, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if integers is None or integers.dtype != np.int8 or scale is None:
            return False
        if zero is not None and constant_of(zero) is None:
            return False
        uses = list(node.outputs[0].uses())
        readers = all(use.node.op_type in _PRODUCTS and use.node.domain == "" and use.idx == 1 for use in uses)
        return bool(uses) and readers and not node.outputs[0].is_graph_output()

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        stored, scale = node.inputs[0], constant_of(node.inputs[1])
        integers = constant_of(stored)
        if stored is None or scale is None or integers is None:
            raise ValueError(f"{node.name} has no fixed weight")
        zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        zero = np.zeros(scale.shape, np.int8) if zero is None else zero
        name, shape, output = f"{stored.name}_unsigned", integers.shape, node.outputs[0]

        def moved() -> NDArray[np.uint8]:  # reads the weight anew: all of a UNet's at once would not fit
            return self.reference(stored.const_value.numpy())  # type: ignore[union-attr]

        weight = add_lazy(graph, name, ir.DataType.UINT8, shape, moved)
        zero_point = add_constant(graph, self.reference(zero), f"{name}_zero_point")
        attributes = {"axis": node.attributes.get_int("axis", 1)}
        inputs = [weight, node.inputs[1], zero_point]
        replace(output, insert(node, "DequantizeLinear", inputs, attributes=attributes, like=output))

    @staticmethod
    def reference(integers: NDArray[Any]) -> NDArray[np.uint8]:
        """int8 of any shape -> uint8 that stand for the same numbers around a zero point moved by 128."""
        return (integers.astype(np.int16) + SHIFT).astype(np.uint8)
