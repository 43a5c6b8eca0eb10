"""What linear layers look like in a canonical graph: a MatMul or Gemm, its weight, float or integers, and its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import add_constant, constant_of, fixed_dim, insert, producer
from tintype.kernels.graph.blocks import blocked_columns, is_blocked

HALF_EXPONENT = np.uint16(0x7C00)  # of a float16: all bits of it are set where that is no number


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight (inputs, outputs) as 8-bit integers: values = (integers - zero_point) * scale, each by column or one."""

    name: str
    integers: NDArray[Any]  # (inputs, outputs), int8 or uint8
    scale: NDArray[np.float32]  # () or (outputs,)
    zero_point: NDArray[Any]  # as scale, of the integers' type


def half_weight(value: ir.Value | None) -> NDArray[Any] | None:
    """The float16 data behind a Cast to float, which is how weights are stored at half size; else None."""
    node = producer(value, "Cast")
    known = constant_of(node.inputs[0]) if node is not None else None
    return known if known is not None and known.dtype == np.float16 else None


def finite_halves(value: ir.Value | None) -> NDArray[np.float16] | None:
    """The same where all of it are numbers, which operators of our own take as it is; else None."""
    known = half_weight(value)
    if known is None:
        return None
    exponents = np.ascontiguousarray(known).view(np.uint16) & HALF_EXPONENT
    return None if (exponents == HALF_EXPONENT).any() else known


def width_of(weight: ir.Value | None) -> int:
    """Columns of a weight (inputs, outputs) that is fixed, as float, half or integers; 0 when it isn't one."""
    known = constant_of(weight)
    known = half_weight(weight) if known is None else known
    if known is not None:
        return known.shape[1] if known.ndim == 2 else 0
    if weight is not None and is_blocked(weight):
        return fixed_dim(weight, 1)
    quantized = quantized_weight(weight)
    return quantized.integers.shape[1] if quantized is not None else 0


def fixed_bias(add: ir.Node | None, product: ir.Value, width: int) -> ir.Value | None:
    """The other operand of an Add when it is a bias (width,) fixed in the graph."""
    if add is None or len(add.inputs) != 2:
        return None
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    known = constant_of(other)
    return other if known is not None and known.shape == (width,) else None


def quantized_weight(value: ir.Value | None, *, transposed: bool = False) -> QuantizedWeight | None:
    """The integers behind a DequantizeLinear by column (or by tensor), else None.

    transposed: the value is (outputs, inputs), as in Gemm with transB; what is returned never is.
    """
    node = producer(value, "DequantizeLinear")
    if node is None or node.attributes.get_int("block_size", 0) != 0:
        return None
    integers, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
    zero = constant_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if integers is None or scale is None or integers.ndim != 2 or integers.dtype not in (np.int8, np.uint8):
        return None
    if scale.dtype != np.float32 or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        return None
    axis = node.attributes.get_int("axis", 1) % 2
    columns = 0 if transposed else 1
    if scale.size > 1 and (scale.shape != (integers.shape[columns],) or axis != columns):
        return None
    scale = scale if scale.size > 1 else scale.reshape(())
    zero = np.zeros(scale.shape, integers.dtype) if zero is None else zero.reshape(scale.shape)
    name = node.inputs[0].name if node.inputs[0] is not None else None
    return QuantizedWeight(name or "weight", integers.T if transposed else integers, scale, zero)


def columns_of(
    value: ir.Value | None, columns: slice, suffix: str, before: ir.Node, graph: ir.Graph
) -> ir.Value | None:
    """Some columns of a weight (inputs, outputs), stored as it was, as a new value; None when it isn't fixed."""
    known, half = constant_of(value), half_weight(value)
    if known is not None and value is not None:
        return add_constant(graph, known[:, columns], f"{value.name}_{suffix}")
    if half is not None and value is not None:
        stored = add_constant(graph, half[:, columns], f"{value.name}_{suffix}")
        output = insert(before, "Cast", [stored], attributes={"to": ir.DataType.FLOAT.value})
        output.shape, output.dtype = stored.shape, ir.DataType.FLOAT
        return output
    if value is not None and is_blocked(value):
        return blocked_columns(value, columns, suffix, before, graph)
    weight = quantized_weight(value)
    if weight is None:
        return None
    by_column = weight.scale.ndim == 1
    name = f"{weight.name}_{suffix}"
    parts = (
        add_constant(graph, weight.integers[:, columns], name),
        add_constant(graph, weight.scale[columns] if by_column else weight.scale, f"{name}_scale"),
        add_constant(graph, weight.zero_point[columns] if by_column else weight.zero_point, f"{name}_zero_point"),
    )
    output = insert(before, "DequantizeLinear", parts, attributes={"axis": 1})
    output.shape, output.dtype = parts[0].shape, ir.DataType.FLOAT
    return output
