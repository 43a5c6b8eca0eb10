"""Adapters merged into the weights of a canonical graph, stored as they were: float, half, or integers rounded anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import constant_of, producer
from tintype.kernels.graph.blocks import packed
from tintype.kernels.graph.four_bits import BLOCK, BlockScales, block_scales, from_integers, to_integers
from tintype.kernels.graph.low_rank import AdaptableLayer

Floats = NDArray[np.float32]
LARGEST_INT8 = 127
_LEAST = np.float32(1e-12)


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter does to a weight (outputs, inputs * kernel): weight * delta is added, where delta is the product
    of the factors: up (outputs, rank) and down, or itself alone.

    magnitudes: (outputs, 1), or (1, inputs): the lengths that rows, or columns, of the sum of weight and delta are
    brought to first (DoRA: Liu et al. 2024); None where there are none.
    """

    weight: float
    factors: tuple[Floats, ...]
    magnitudes: Floats | None = None

    def delta(self, scale: float, *, turned: bool) -> Floats:
        """A new array, scaled. turned: (inputs, outputs)"""
        first, *others = [factor.T for factor in reversed(self.factors)] if turned else self.factors
        first = first * np.float32(scale)
        return np.asarray(first @ others[0] if others else first)


@dataclass(frozen=True, slots=True)
class Stored:
    """How a layer's weight is stored. scale: the initializer of its scales, None where it is no integers. zero_point:
    of four bits by block, None of all others."""

    value: ir.Value
    scale: ir.Value | None
    turned: bool  # (inputs, outputs), where torch has (outputs, inputs)
    zero_point: ir.Value | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """A layer's new initializers by name, and how far what is stored is from the merge in float: squares, summed.

    What has four bits is packed, two numbers a byte in one row, as graphs have it.
    """

    initializers: Mapping[str, NDArray[Any]]
    squares: float
    error_squares: float


def merge_layer(layer: AdaptableLayer, changes: Sequence[Change]) -> Merged:
    """Raises ValueError for a weight that is stored in a way that isn't known."""
    stored = _stored(layer)
    before = _matrix(layer, stored)
    after = before
    for change in changes:
        added = _added(before, change, layer.shape, turned=stored.turned)
        after = np.add(added, after, out=added)
    if stored.zero_point is not None:
        return _merged_blocks(stored, after)
    made = dict(_initializers(layer, stored, after))
    kept = made[str(stored.value.name)]
    if kept.dtype == np.float32:
        return Merged(made, 1.0, 0.0)
    error = kept.reshape(after.shape).astype(np.float32)
    if stored.scale is not None:
        error *= _spread(made[str(stored.scale.name)], stored)
    error -= after
    return Merged(made, float(np.vdot(after, after)), float(np.vdot(error, error)))


def put_weights(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Put other numbers in the place of initializers. Raises ValueError for one that is no such initializer."""
    for name, tensor in weights.items():
        value = graph.initializers.get(name)
        known = None if value is None else value.const_value
        if known is not None and known.dtype == ir.DataType.UINT4 and tensor.dtype == ir.DataType.UINT8:
            tensor = _unpacked(tensor, known.shape, name)
        if value is None or known is None or (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"the graph has no weight {name} of this type and shape")
        value.const_value = tensor


def _unpacked(tensor: ir.TensorProtocol, shape: ir.ShapeProtocol, name: str) -> ir.TensorProtocol:
    """Four bits from a row of bytes. Raises ValueError where these are too few or too many."""
    if tuple(tensor.shape.numpy()) != ((math.prod(shape.numpy()) + 1) // 2,):
        raise ValueError(f"{name} has {tensor.size} bytes, and they are not those of its shape")
    dtype, fixed = ir.DataType.UINT4, ir.Shape(shape.numpy())

    def read() -> ir.TensorProtocol:
        return ir.PackedTensor(tensor.numpy(), dtype, shape=fixed, name=name)

    return ir.LazyTensor(read, dtype, fixed, name=name)


def _merged_blocks(stored: Stored, after: Floats) -> Merged:
    """Four bits chosen anew for the merged weight (inputs, outputs)."""
    assert stored.scale is not None
    assert stored.zero_point is not None
    scales = block_scales(after)
    integers = to_integers(after, scales)
    error = from_integers(integers, scales)
    error -= after
    made: dict[str, NDArray[Any]] = {
        str(stored.value.name): packed(integers.reshape(-1), 4),
        str(stored.scale.name): scales.scale,
        str(stored.zero_point.name): packed(scales.zero_point.reshape(-1), 4),
    }
    return Merged(made, float(np.vdot(after, after)), float(np.vdot(error, error)))


def _added(before: Floats, change: Change, shape: tuple[int, ...], *, turned: bool) -> Floats:
    """As the weight is stored, of which that is before."""
    if change.magnitudes is None:
        return change.delta(change.weight, turned=turned)
    whole = before + change.delta(1.0, turned=turned)
    rows = whole.T if turned else whole
    if change.magnitudes.shape == (len(rows), 1):
        scaled = rows * (change.magnitudes / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _LEAST))
    else:
        cubes = rows.reshape(len(rows), shape[1], -1)
        lengths = np.maximum(np.sqrt(np.square(cubes).sum(axis=(0, 2))), _LEAST)
        scaled = (cubes * (change.magnitudes.reshape(-1) / lengths)[:, np.newaxis]).reshape(rows.shape)
    return np.float32(change.weight) * ((scaled.T if turned else scaled) - before)


def _stored(layer: AdaptableLayer) -> Stored:
    weight = layer.node.inputs[1]
    turned = layer.node.op_type != "Conv" and layer.node.attributes.get_int("transB", 0) == 0
    cast, dequantize = producer(weight, "Cast"), producer(weight, "DequantizeLinear")
    if dequantize is not None and dequantize.attributes.get_int("block_size", 0) != 0:
        return _stored_blocks(layer, dequantize)
    if dequantize is not None:
        value, scale = dequantize.inputs[0], dequantize.inputs[1]
        zero = constant_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
        rows = 1 if turned else 0
        plain = dequantize.attributes.get_int("axis", 1) == rows
        known = constant_of(scale)
        if value is None or scale is None or known is None or known.shape != layer.shape[:1] or not plain:
            raise ValueError(f"the weight of {layer.name} is quantized in a way that isn't known")
        if value.dtype != ir.DataType.INT8 or (zero is not None and zero.any()):
            raise ValueError(f"the weight of {layer.name} is quantized in a way that isn't known")
        return Stored(value, scale, turned)
    value = weight if cast is None else cast.inputs[0]
    if value is None or constant_of(value) is None or value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise ValueError(f"the weight of {layer.name} is stored in a way that isn't known")
    return Stored(value, None, turned)


def _stored_blocks(layer: AdaptableLayer, dequantize: ir.Node) -> Stored:
    """As the export writes four bits: see `kernels.graph.blocks`."""
    value, scale, zero_point = dequantize.inputs if len(dequantize.inputs) == 3 else (None, None, None)
    cast = producer(scale, "Cast")
    half = cast.inputs[0] if cast is not None else None
    block, axis = dequantize.attributes.get_int("block_size", 0), dequantize.attributes.get_int("axis", 1)
    outputs, inputs = layer.shape[:2]
    shape = inputs // BLOCK, outputs
    known, zeros = constant_of(half), constant_of(zero_point)
    alike = len(layer.shape) == 2 and (block, axis) == (BLOCK, 0) and inputs % BLOCK == 0
    if value is None or value.dtype != ir.DataType.UINT4 or known is None or zeros is None or not alike:
        raise ValueError(f"the weight of {layer.name} is quantized in a way that isn't known")
    if known.dtype != np.float16 or not known.shape == zeros.shape == shape or layer.node.op_type != "MatMul":
        raise ValueError(f"the weight of {layer.name} is quantized in a way that isn't known")
    return Stored(value, half, True, zero_point)


def _matrix(layer: AdaptableLayer, stored: Stored) -> Floats:
    """The weight in two dimensions, as it is stored: to turn it takes longer than to merge."""
    data, scale = constant_of(stored.value), constant_of(stored.scale)
    if data is None:
        raise ValueError(f"{layer.name} has no fixed weight")
    zeros = constant_of(stored.zero_point)
    if scale is not None and zeros is not None:
        return from_integers(data.astype(np.uint8), BlockScales(scale, zeros.astype(np.uint8)))
    matrix = (data if stored.turned else data.reshape(layer.shape[0], -1)).astype(np.float32, copy=False)
    return matrix if scale is None else matrix * _spread(scale.astype(np.float32), stored)


def _spread(scales: Floats, stored: Stored) -> Floats:
    """One number for each output, along a weight in two dimensions as it is stored."""
    return scales if stored.turned else scales[:, np.newaxis]


def _initializers(layer: AdaptableLayer, stored: Stored, matrix: Floats) -> Iterator[tuple[str, NDArray[Any]]]:
    """The weight as it was stored, and of an int8 one the scales, and the bias where that is stored by them."""
    data = constant_of(stored.value)
    assert data is not None
    if stored.scale is None:
        yield str(stored.value.name), _as_stored(matrix, data)
        return
    before = constant_of(stored.scale)
    assert before is not None
    axis = 0 if stored.turned else 1
    largest = np.maximum(matrix.max(axis=axis), -matrix.min(axis=axis))
    scales = np.maximum(largest, _LEAST) / np.float32(LARGEST_INT8)
    integers = matrix / _spread(scales, stored)
    np.rint(integers, out=integers)  # none is larger than 127, of which the largest is made
    yield str(stored.value.name), _as_stored(integers, data)
    yield str(stored.scale.name), scales.astype(np.float32)
    bias = producer(layer.node.inputs[2], "DequantizeLinear") if len(layer.node.inputs) > 2 else None
    if bias is not None and bias.inputs[0] is not None and bias.inputs[1] is not None:
        numbers, steps = constant_of(bias.inputs[0]), constant_of(bias.inputs[1])
        if numbers is None or steps is None or steps.shape != scales.shape:
            raise ValueError(f"the bias of {layer.name} is quantized in a way that isn't known")
        other = (steps * (scales / before)).astype(np.float32)  # as the weight's: of the input's scale and its own
        yield str(bias.inputs[0].name), np.rint(numbers * (steps.astype(np.float64) / other)).astype(np.int32)
        yield str(bias.inputs[1].name), other


def _as_stored(matrix: Floats, data: NDArray[Any]) -> NDArray[Any]:
    if data.dtype == np.float16:
        matrix = np.clip(matrix, *(np.finfo(np.float16).min, np.finfo(np.float16).max))
    return np.ascontiguousarray(matrix.reshape(data.shape).astype(data.dtype, copy=False))
