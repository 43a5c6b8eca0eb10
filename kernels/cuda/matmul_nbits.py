"""Linear layers whose weights are stored as 8- or 4-bit integers, as com.microsoft MatMulNBits: they stay small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shapes,
    add_constant,
    constant_of,
    insert,
    producer,
    rank_of,
    replace,
)
from tintype.kernels.graph.linear import quantized_weight

BLOCKS = (128, 64, 32, 16)  # inputs that share a scale; the largest that fits costs the least
SMALLEST_SCALE = 2.0**-14  # below it float16 loses bits
KINDS = {
    ir.DataType.INT8: (8, 128),  # bits, and what makes the integers unsigned
    ir.DataType.UINT8: (8, 0),
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
}


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """values[k, n] = (integers[k, n] - zero_point[k // block, n]) * scale[k // block, n], integers from 0 up."""

    name: str
    bits: int
    block: int
    integers: NDArray[np.uint8]  # (inputs, outputs)
    scale: NDArray[np.float32]  # (inputs / block, outputs)
    zero_point: NDArray[np.uint8]  # like scale


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
        return blocked_weight(node.inputs[1]) is not None

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        weight = blocked_weight(node.inputs[1])
        if weight is None:
            raise ValueError(f"{node.name} has no weight of 4 or 8 bits")
        inputs, outputs = weight.integers.shape
        blocks = inputs // weight.block
        by_output = weight.integers.T.reshape(outputs, blocks, weight.block)
        stored = [
            add_constant(graph, _packed(by_output, weight.bits), f"{weight.name}_blocks"),
            add_constant(graph, weight.scale.T.reshape(-1), f"{weight.name}_block_scales"),
        ]
        if (weight.zero_point != 2 ** (weight.bits - 1)).any():
            zeros = _packed_rows(weight.zero_point.T, weight.bits).reshape(-1)
            stored.append(add_constant(graph, zeros, f"{weight.name}_block_zero_points"))
        attributes = {"K": inputs, "N": outputs, "bits": weight.bits, "block_size": weight.block}
        source, output = node.inputs[0], node.outputs[0]
        product = insert(node, "MatMulNBits", [source, *stored], domain=MICROSOFT, attributes=attributes, like=output)
        product.dtype = ir.DataType.FLOAT
        replace(output, product)

    @staticmethod
    def reference(
        x: NDArray[Any], integers: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | float = 0.0
    ) -> NDArray[Any]:
        """x (..., inputs), integers (inputs, outputs); scale and zero_point (blocks, outputs) or less."""
        repeats = integers.shape[0] // scale.shape[0] if scale.ndim == 2 else 1
        whole = np.repeat(scale.astype(np.float64), repeats, axis=0) if scale.ndim == 2 else scale.astype(np.float64)
        zero = np.repeat(zero_point, repeats, axis=0) if np.ndim(zero_point) == 2 else zero_point
        return x.astype(np.float64) @ ((integers.astype(np.float64) - zero) * whole)


def blocked_weight(value: ir.Value | None) -> BlockedWeight | None:
    """A fixed weight (inputs, outputs) behind a DequantizeLinear, in blocks; None when the kernel can't hold it."""
    node = producer(value, "DequantizeLinear")
    if node is None or node.inputs[0] is None or node.inputs[0].const_value is None:
        return None
    kind = KINDS.get(node.inputs[0].const_value.dtype)
    if kind is None:
        return None
    if node.attributes.get_int("block_size", 0):
        found = _in_blocks(node, *kind)
    else:
        found = _by_column(value, *kind)
    if found is None or found.block not in BLOCKS or found.scale.min() < SMALLEST_SCALE:
        return None
    return found


def _by_column(value: ir.Value | None, bits: int, offset: int) -> BlockedWeight | None:
    weight = quantized_weight(value)
    if weight is None:
        return None
    inputs, outputs = weight.integers.shape
    block = next((size for size in BLOCKS if inputs % size == 0), 0)
    if not block:
        return None
    shape = inputs // block, outputs
    zero = np.broadcast_to(weight.zero_point.astype(np.int16) + offset, shape)
    integers = (weight.integers.astype(np.int16) + offset).astype(np.uint8)
    scale = np.ascontiguousarray(np.broadcast_to(weight.scale, shape))
    return BlockedWeight(weight.name, bits, block, integers, scale, zero.astype(np.uint8))


def _in_blocks(node: ir.Node, bits: int, offset: int) -> BlockedWeight | None:
    """A DequantizeLinear with a scale for every block of inputs."""
    integers, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant_of(given)
    block = node.attributes.get_int("block_size", 0)
    if integers is None or scale is None or (given is not None and zero is None) or scale.dtype != np.float32:
        return None
    if integers.ndim != 2 or node.attributes.get_int("axis", 1) not in (0, -2):
        return None
    if scale.shape != (integers.shape[0] // block, integers.shape[1]) or integers.shape[0] % block:
        return None
    zeros = np.full(scale.shape, offset) if zero is None else zero.astype(np.int16) + offset
    whole = (integers.astype(np.int16) + offset).astype(np.uint8)
    name = node.inputs[0].name if node.inputs[0] is not None else None
    return BlockedWeight(name or "weight", bits, block, whole, scale, zeros.astype(np.uint8))


def _packed(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """4-bit integers two a byte, the first in the lower half; 8-bit ones as they are."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    return np.ascontiguousarray(integers[..., 0::2] | (integers[..., 1::2] << 4)).astype(np.uint8)


def _packed_rows(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The same for rows that may be odd in length."""
    odd = integers.shape[-1] % 2 if bits == 4 else 0
    return _packed(np.pad(integers, ((0, 0), (0, odd))), bits)
