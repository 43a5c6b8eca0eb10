"""Linear layers whose weights are stored as 8- or 4-bit integers, as com.microsoft MatMulNBits: they stay small."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, producer, rank_of, replace
from tintype.kernels.graph.blocks import KINDS, BlockedWeight, blocked_weight, nbits_product
from tintype.kernels.graph.linear import quantized_weight

BLOCKS = (128, 64, 32, 16)  # inputs that share a scale; the largest that fits costs the least
SMALLEST_SCALE = 2.0**-14  # below it float16 loses bits


class LinearNBits(Kernel):
    """MatMul with a fixed DequantizeLinear weight: by column, by tensor, or by block of inputs.

    It buys memory, not time: the device turns a layer's weights to float at each call. Not run on a GPU yet; on a
    processor, which has the operator too, it is.
    """

    name = "matmul_nbits"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same weights; in float16 their scales are rounded to 11 bits"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Two dims or more, and inputs that a block divides."""
        if node.op_type != "MatMul" or node.domain != "" or rank_of(shapes.of(node.inputs[0])) < 2:
            return False
        return _weight(node.inputs[1]) is not None

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        weight = _weight(node.inputs[1])
        if weight is None:
            raise ValueError(f"{node.name} has no weight of 4 or 8 bits")
        replace(node.outputs[0], nbits_product(node, weight, graph))

    @staticmethod
    def reference(
        x: NDArray[Any], integers: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | float = 0.0
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs); scale and zero_point (blocks, outputs) or less."""
        repeats = integers.shape[0] // scale.shape[0] if scale.ndim == 2 else 1
        whole = np.repeat(scale.astype(np.float64), repeats, axis=0) if scale.ndim == 2 else scale.astype(np.float64)
        zero = np.repeat(zero_point, repeats, axis=0) if np.ndim(zero_point) == 2 else zero_point
        return x.astype(np.float64) @ ((integers.astype(np.float64) - zero) * whole)


def _weight(value: ir.Value | None) -> BlockedWeight | None:
    """A fixed weight (inputs, outputs) behind a DequantizeLinear, in blocks; None when the kernel can't hold it."""
    found = blocked_weight(value) or _by_column(value)
    if found is None or found.block not in BLOCKS or found.scale.min() < SMALLEST_SCALE:
        return None
    return found


def _by_column(value: ir.Value | None) -> BlockedWeight | None:
    node, weight = producer(value, "DequantizeLinear"), quantized_weight(value)
    if node is None or weight is None or node.inputs[0] is None or node.inputs[0].const_value is None:
        return None
    bits, offset = KINDS[node.inputs[0].const_value.dtype]
    inputs, outputs = weight.integers.shape
    block = next((size for size in BLOCKS if inputs % size == 0), 0)
    if not block:
        return None
    shape = inputs // block, outputs
    zero = np.broadcast_to(weight.zero_point.astype(np.int16) + offset, shape)
    integers = (weight.integers.astype(np.int16) + offset).astype(np.uint8)
    scale = np.ascontiguousarray(np.broadcast_to(weight.scale, shape))
    return BlockedWeight(weight.name, bits, block, integers, scale, zero.astype(np.uint8))
