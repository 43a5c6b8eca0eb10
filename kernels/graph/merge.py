"""Adapters merged into the weights of a canonical graph, stored as they were: float, half, or int8 rounded anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import constant_of, producer
from tintype.kernels.graph.low_rank import AdaptableLayer

Floats = NDArray[np.float32]
LARGEST_INT8 = 127
BLOCK_NUMBERS, LEAST_OUTPUTS = 2**18, 64  # of a weight that are merged at once: 1 MiB as floats, lines of a cache whole
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

    def of(self, outputs: slice) -> Change:
        """The same of some of the outputs. Magnitudes by input are of all, and have to be asked for all at once."""
        magnitudes = self.magnitudes if self.is_by_input or self.magnitudes is None else self.magnitudes[outputs]
        return Change(self.weight, (self.factors[0][outputs], *self.factors[1:]), magnitudes)

    @property
    def is_by_input(self) -> bool:
        return self.magnitudes is not None and self.magnitudes.shape[0] == 1 != self.factors[0].shape[0]


@dataclass(frozen=True, slots=True)
class Stored:
    """How a layer's weight is stored. scale: the initializer of an int8 weight's scales, None where it is no int8."""

    value: ir.Value
    scale: ir.Value | None
    turned: bool  # (inputs, outputs), where torch has (outputs, inputs)


@dataclass(frozen=True, slots=True)
class Merged:
    """A layer's new initializers by name, and how far what is stored is from the merge in float: squares, summed."""

    initializers: Mapping[str, NDArray[Any]]
    squares: float
    error_squares: float


def merge_layer(layer: AdaptableLayer, changes: Sequence[Change]) -> Merged:
    """Raises ValueError for a weight that is stored in a way that isn't known, and for one that grows beyond numbers.

    Some outputs at a time: what is computed of a weight stays in the processor's cache from its first product to its
    last rounding.
    """
    stored = _stored(layer)
    data, before = constant_of(stored.value), constant_of(stored.scale)
    if data is None:
        raise ValueError(f"{layer.name} has no fixed weight")
    kept, scales = np.empty(data.shape, data.dtype), np.empty(layer.shape[:1], np.float32)
    source, place = (each if stored.turned else each.reshape(layer.shape[0], -1) for each in (data, kept))
    squares = error_squares = 0.0
    for outputs in _blocks(layer.shape, changes):
        index = (slice(None), outputs) if stored.turned else (outputs,)
        block = source[index].astype(np.float32)
        if before is not None:
            block *= _spread(before[outputs].astype(np.float32), stored)
        after = block
        for change in changes:
            added = _added(block, change.of(outputs), layer.shape, turned=stored.turned)
            after = np.add(added, after, out=added)
        if not np.isfinite(after).all():
            raise ValueError(f"the weight of {layer.name} grows beyond all numbers")
        place[index] = _as_stored(after, scales[outputs], stored, data.dtype)
        if data.dtype != np.float32:
            error = place[index].astype(np.float32)
            if before is not None:
                error *= _spread(scales[outputs], stored)
            error -= after
            squares, error_squares = (
                squares + float(np.vdot(after, after)),
                error_squares + float(np.vdot(error, error)),
            )
    made = {str(stored.value.name): kept}
    if stored.scale is not None and before is not None:
        made |= {str(stored.scale.name): scales, **dict(_bias(layer, scales, before))}
    return Merged(made, squares or 1.0, error_squares)


def _blocks(shape: Sequence[int], changes: Sequence[Change]) -> Iterator[slice]:
    """Outputs that are merged at once: all of them where lengths by input go over all."""
    outputs, numbers = shape[0], int(np.prod(shape[1:]))
    step = outputs if any(change.is_by_input for change in changes) else max(LEAST_OUTPUTS, BLOCK_NUMBERS // numbers)
    yield from (slice(start, min(start + step, outputs)) for start in range(0, outputs, step))


def put_weights(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Put other numbers in the place of initializers. Raises ValueError for one that is no such initializer."""
    for name, tensor in weights.items():
        value = graph.initializers.get(name)
        known = None if value is None else value.const_value
        if value is None or known is None or (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"the graph has no weight {name} of this type and shape")
        value.const_value = tensor


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
    if dequantize is not None:
        value, scale = dequantize.inputs[0], dequantize.inputs[1]
        zero = constant_of(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
        rows = 1 if turned else 0
        plain = dequantize.attributes.get_int("axis", 1) == rows and not dequantize.attributes.get_int("block_size", 0)
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


def _spread(scales: Floats, stored: Stored) -> Floats:
    """One number for each output, along a weight in two dimensions as it is stored."""
    return scales if stored.turned else scales[:, np.newaxis]


def _as_stored(matrix: Floats, scales: Floats, stored: Stored, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A weight as it was stored; where that is int8, its scales are put into `scales`."""
    if stored.scale is None:
        return np.clip(matrix, *(np.finfo(dtype).min, np.finfo(dtype).max)) if dtype == np.float16 else matrix
    axis = 0 if stored.turned else 1
    scales[:] = np.maximum(np.maximum(matrix.max(axis=axis), -matrix.min(axis=axis)), _LEAST) / np.float32(LARGEST_INT8)
    integers = matrix / _spread(scales, stored)
    return np.rint(integers, out=integers)  # none is larger than 127, of which the largest is made


def _bias(layer: AdaptableLayer, scales: Floats, before: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Of a layer's bias what is stored by the weight's scales."""
    bias = producer(layer.node.inputs[2], "DequantizeLinear") if len(layer.node.inputs) > 2 else None
    if bias is not None and bias.inputs[0] is not None and bias.inputs[1] is not None:
        numbers, steps = constant_of(bias.inputs[0]), constant_of(bias.inputs[1])
        if numbers is None or steps is None or steps.shape != scales.shape:
            raise ValueError(f"the bias of {layer.name} is quantized in a way that isn't known")
        other = (steps * (scales / before)).astype(np.float32)  # as the weight's: of the input's scale and its own
        yield str(bias.inputs[0].name), np.rint(numbers * (steps.astype(np.float64) / other)).astype(np.int32)
        yield str(bias.inputs[1].name), other
