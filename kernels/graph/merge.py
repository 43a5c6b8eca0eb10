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
PART_NUMBERS, LEAST_OUTPUTS = 2**18, 64  # of a weight that are merged at once: 1 MiB as floats, lines of a cache whole
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
    """Raises ValueError for a weight that is stored in a way that isn't known, and for one that grows beyond numbers.

    Some outputs at a time: what is computed of a weight stays in the processor's cache from its first product to its
    last rounding.
    """
    stored, weight = _opened(layer)
    squares = error_squares = 0.0
    for outputs in _parts(layer.shape, changes):
        after = before = weight.floats(outputs)
        for change in changes:
            added = _added(before, change.of(outputs), layer.shape, turned=stored.turned)
            after = np.add(added, after, out=added)
        if not np.isfinite(after).all():
            raise ValueError(f"the weight of {layer.name} grows beyond all numbers")
        error = weight.keep(outputs, after)
        if error is not None:
            error -= after
            squares += float(np.vdot(after, after))
            error_squares += float(np.vdot(error, error))
    return Merged(weight.initializers(), squares or 1.0, error_squares)


def squared_lengths(layer: AdaptableLayer, factors: tuple[Floats, ...], *, by_input: bool) -> Floats:
    """The squares of the lengths that the rows of a layer's weight have with the product of these factors, see
    `Change`, by output (outputs,) or by input (inputs,), over the whole kernel.

    Raises ValueError for a weight that is stored in a way that isn't known.
    """
    change, found = Change(1.0, factors), np.zeros(layer.shape[1 if by_input else 0], np.float64)
    stored, weight = _opened(layer)
    for outputs in _parts(layer.shape, [change]):
        whole = weight.floats(outputs)
        whole += change.of(outputs).delta(1.0, turned=stored.turned)
        squares = np.square(whole.T if stored.turned else whole)
        if by_input:
            found += squares.reshape(len(squares), layer.shape[1], -1).sum(axis=(0, 2), dtype=np.float64)
        else:
            found[outputs] = squares.sum(axis=1, dtype=np.float64)
    return found.astype(np.float32)


def _parts(shape: Sequence[int], changes: Sequence[Change]) -> Iterator[slice]:
    """Outputs that are merged at once: all of them where lengths by input go over all."""
    outputs, numbers = shape[0], int(np.prod(shape[1:]))
    step = outputs if any(change.is_by_input for change in changes) else max(LEAST_OUTPUTS, PART_NUMBERS // numbers)
    yield from (slice(start, min(start + step, outputs)) for start in range(0, outputs, step))


def _opened(layer: AdaptableLayer) -> tuple[Stored, _ByOutput | _InBlocks]:
    stored = _stored(layer)
    return stored, _ByOutput(layer, stored) if stored.zero_point is None else _InBlocks(layer, stored)


class _ByOutput:
    """A weight of floats, or of int8 with a scale for each output, read and written some outputs at a time."""

    def __init__(self, layer: AdaptableLayer, stored: Stored) -> None:
        self._layer, self._stored = layer, stored
        self._data, self._steps = _fixed(layer, stored.value), constant_of(stored.scale)
        self._kept, self._scales = np.empty_like(self._data), np.empty(layer.shape[:1], np.float32)
        self._source, self._place = (
            each if stored.turned else each.reshape(layer.shape[0], -1) for each in (self._data, self._kept)
        )

    def floats(self, outputs: slice) -> Floats:
        """A new array, as the weight is stored."""
        part = self._source[self._index(outputs)].astype(np.float32)
        if self._steps is not None:
            part *= self._spread(self._steps[outputs].astype(np.float32))
        return part

    def keep(self, outputs: slice, part: Floats) -> Floats | None:
        """Store these outputs; what is stored as floats, a new array, or None where that is the same."""
        place, dtype = self._index(outputs), self._data.dtype
        if self._steps is None:
            limits = (np.finfo(dtype).min, np.finfo(dtype).max)
            self._place[place] = np.clip(part, *limits) if dtype == np.float16 else part
            return None if dtype == np.float32 else self._place[place].astype(np.float32)
        axis, scales = 0 if self._stored.turned else 1, self._scales[outputs]
        largest = np.maximum(part.max(axis=axis), -part.min(axis=axis))
        scales[:] = np.maximum(largest, _LEAST) / np.float32(LARGEST_INT8)
        integers = part / self._spread(scales)
        np.rint(integers, out=integers)  # none is larger than 127, of which the largest is made
        self._place[place] = integers
        integers *= self._spread(scales)
        return integers

    def initializers(self) -> dict[str, NDArray[Any]]:
        made = {str(self._stored.value.name): self._kept}
        if self._stored.scale is not None and self._steps is not None:
            made |= {str(self._stored.scale.name): self._scales, **dict(_bias(self._layer, self._scales, self._steps))}
        return made

    def _index(self, outputs: slice) -> tuple[slice, ...]:
        return (slice(None), outputs) if self._stored.turned else (outputs,)

    def _spread(self, scales: Floats) -> Floats:
        """One number for each output, along a weight in two dimensions as it is stored."""
        return scales if self._stored.turned else scales[:, np.newaxis]


class _InBlocks:
    """The same of four bits with a scale and a zero point for each block of inputs, chosen anew."""

    def __init__(self, layer: AdaptableLayer, stored: Stored) -> None:
        self._stored = stored
        integers, scale, zeros = (_fixed(layer, each) for each in (stored.value, stored.scale, stored.zero_point))
        self._integers, self._scale, self._zeros = integers.astype(np.uint8), scale.copy(), zeros.astype(np.uint8)

    def floats(self, outputs: slice) -> Floats:
        scales = BlockScales(self._scale[:, outputs], self._zeros[:, outputs])
        return from_integers(self._integers[:, outputs], scales)

    def keep(self, outputs: slice, part: Floats) -> Floats:
        scales = block_scales(part)
        integers = to_integers(part, scales)
        self._integers[:, outputs] = integers
        self._scale[:, outputs], self._zeros[:, outputs] = scales.scale, scales.zero_point
        return from_integers(integers, scales)

    def initializers(self) -> dict[str, NDArray[Any]]:
        stored = self._stored
        kept = (packed(self._integers.reshape(-1), 4), self._scale, packed(self._zeros.reshape(-1), 4))
        names = (stored.value, stored.scale, stored.zero_point)
        return {str(value.name): numbers for value, numbers in zip(names, kept, strict=True) if value is not None}


def _fixed(layer: AdaptableLayer, value: ir.Value | None) -> NDArray[Any]:
    numbers = constant_of(value)
    if numbers is None:
        raise ValueError(f"{layer.name} has no fixed weight")
    return numbers


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
