"""Weights in blocks of inputs, as graphs have them: DequantizeLinear along the inputs, or com.microsoft MatMulNBits.

In a canonical graph such a weight is DequantizeLinear(uint4 (inputs, outputs), scale, zero point) with one scale,
stored as float16 behind a Cast, and one zero point for every 32 inputs of an output; see `four_bits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, add_constant, constant_of, insert, producer
from tintype.kernels.graph.four_bits import spread

KINDS = {
    ir.DataType.INT8: (8, 128),  # bits, and what makes the integers unsigned
    ir.DataType.UINT8: (8, 0),
    ir.DataType.INT4: (4, 8),
    ir.DataType.UINT4: (4, 0),
}
SIZES = (256, 128, 64, 32, 16)  # of blocks that MatMulNBits knows


@dataclass(frozen=True, slots=True)
class BlockedWeight:
    """values[k, n] = (integers[k, n] - zero_point[k // block, n]) * scale[k // block, n], integers from 0 up."""

    name: str
    bits: int
    block: int
    integers: NDArray[np.uint8]  # (inputs, outputs)
    scale: NDArray[np.float32]  # (inputs / block, outputs)
    zero_point: NDArray[np.uint8]  # like scale

    def floats(self) -> NDArray[np.float32]:
        """(inputs, outputs)"""
        return spread(self.integers, self.scale, self.zero_point)


def is_blocked(value: ir.Value | None) -> bool:
    """Whether `blocked_weight` would read a value; its numbers are not looked at."""
    node = producer(value, "DequantizeLinear")
    block = node.attributes.get_int("block_size", 0) if node is not None else 0
    if node is None or not block or node.attributes.get_int("axis", 1) not in (0, -2):
        return False
    fixed = [each is None or (each.const_value is not None and not each.is_graph_input()) for each in node.inputs]
    integers, scale = node.inputs[:2]
    if not all(fixed) or integers is None or scale is None or integers.shape is None or scale.shape is None:
        return False
    inputs, *outputs = integers.shape.numpy()
    alike = len(outputs) == 1 and inputs % block == 0 and scale.shape.numpy() == (inputs // block, *outputs)
    return alike and integers.dtype in KINDS and scale.dtype == ir.DataType.FLOAT


def bits_of(value: ir.Value | None) -> int:
    """Bits of each number of a weight behind a DequantizeLinear, 0 where there is none."""
    node = producer(value, "DequantizeLinear")
    stored = node.inputs[0] if node is not None else None
    return KINDS.get(stored.dtype, (0, 0))[0] if stored is not None and stored.dtype is not None else 0


def blocked_weight(value: ir.Value | None) -> BlockedWeight | None:
    """A fixed weight (inputs, outputs) behind a DequantizeLinear by block of inputs, whose scales are floats; else
    None."""
    node = producer(value, "DequantizeLinear")
    stored = node.inputs[0] if node is not None else None
    if node is None or stored is None or stored.dtype is None or not is_blocked(value):
        return None
    bits, offset = KINDS[stored.dtype]
    integers, scale = constant_of(stored), constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if integers is None or scale is None:
        return None
    zeros = np.full(scale.shape, offset) if zero is None else zero.astype(np.int16) + offset
    whole = (integers.astype(np.int16) + offset).astype(np.uint8)
    block = node.attributes.get_int("block_size", 0)
    return BlockedWeight(stored.name or "weight", bits, block, whole, scale, zeros.astype(np.uint8))


def blocked_columns(value: ir.Value, columns: slice, suffix: str, before: ir.Node, graph: ir.Graph) -> ir.Value:
    """Some columns of such a weight, stored as it was, as a new value."""
    node = producer(value, "DequantizeLinear")
    if node is None:
        raise ValueError(f"{value.name} is no weight of integers")
    parts = []
    for part in node.inputs:
        known = constant_of(part)
        whole = part is not None and known is not None
        parts.append(add_constant(graph, known[:, columns], f"{part.name}_{suffix}") if whole else None)  # type: ignore
    output = insert(before, "DequantizeLinear", parts, attributes=dict(node.attributes))
    output.dtype = ir.DataType.FLOAT
    if parts[0] is not None:
        output.shape = parts[0].shape
    return output


def nbits_product(
    node: ir.Node, weight: BlockedWeight, graph: ir.Graph, *, bias: ir.Value | None = None, **attributes: Any
) -> ir.Value:
    """A MatMul's product as MatMulNBits, in front of it. attributes: further ones."""
    inputs, outputs = weight.integers.shape
    by_output = weight.integers.T.reshape(outputs, inputs // weight.block, weight.block)
    stored: list[ir.Value | None] = [
        add_constant(graph, packed(by_output, weight.bits), f"{weight.name}_blocks"),
        add_constant(graph, weight.scale.T.reshape(-1), f"{weight.name}_block_scales"),
    ]
    if bias is not None or (weight.zero_point != 2 ** (weight.bits - 1)).any():
        zeros = packed(weight.zero_point.T, weight.bits).reshape(-1)
        stored.append(add_constant(graph, zeros, f"{weight.name}_block_zero_points"))
    if bias is not None:
        stored += [None, bias]  # between them is what would put inputs in another order
    told = {"K": inputs, "N": outputs, "bits": weight.bits, "block_size": weight.block, **attributes}
    sources = [node.inputs[0], *stored]
    product = insert(node, "MatMulNBits", sources, domain=MICROSOFT, attributes=told, like=node.outputs[0])
    product.dtype = ir.DataType.FLOAT
    return product


def packed(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """4-bit integers two a byte along the last axis, the first in the lower half; 8-bit ones as they are."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    odd = [(0, 0)] * (integers.ndim - 1) + [(0, integers.shape[-1] % 2)]
    padded = np.pad(integers, odd)
    return np.ascontiguousarray(padded[..., 0::2] | (padded[..., 1::2] << 4)).astype(np.uint8)
