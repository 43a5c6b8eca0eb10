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


@dataclass(frozen=True, slots=True)
class Change:
    """What one adapter does to a weight (outputs, inputs * kernel): weight * delta is added; with magnitudes (DoRA: Liu
    et al. 2024) the sum of both is first brought to these lengths, by row, or by column where there are as many.

    magnitudes: (outputs, 1) or (1, inputs * kernel's one for each input), None where there are none.
    """

    weight: float
    delta: Floats
    magnitudes: Floats | None = None


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
    """Raises ValueError for a weight that is stored in a way that isn't known."""
    stored = _stored(layer)
    before = _float_rows(layer, stored)
    after = before + sum((_added(before, change, layer.shape) for change in changes), np.zeros((), np.float32))
    made = dict(_initializers(layer, stored, after.astype(np.float32)))
    kept = _kept(made[str(stored.value.name)], made.get(str(stored.scale.name)) if stored.scale is not None else None)
    kept = (kept.T if stored.turned else kept).reshape(after.shape)
    return Merged(made, float(np.square(after, dtype=np.float64).sum()), float(np.square(kept - after).sum()))


def put_weights(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Put other numbers in the place of initializers. Raises ValueError for one that is no such initializer."""
    for name, tensor in weights.items():
        value = graph.initializers.get(name)
        known = None if value is None else value.const_value
        if value is None or known is None or (known.dtype, known.shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"the graph has no weight {name} of this type and shape")
        value.const_value = tensor


def _added(before: Floats, change: Change, shape: tuple[int, ...]) -> Floats:
    delta = change.delta.reshape(before.shape)
    if change.magnitudes is None:
        return np.float32(change.weight) * delta
    whole = before + delta
    if change.magnitudes.shape == (len(before), 1):
        lengths = np.linalg.norm(whole, axis=1, keepdims=True)
        scaled = whole * (change.magnitudes / np.maximum(lengths, np.float32(1e-12)))
    else:
        cubes = whole.reshape(len(before), shape[1], -1)
        lengths = np.sqrt(np.square(cubes).sum(axis=(0, 2)))
        scaled = (cubes * (change.magnitudes.reshape(-1) / np.maximum(lengths, 1e-12))[:, np.newaxis]).reshape(
            whole.shape
        )
    return np.float32(change.weight) * (scaled - before)


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


def _float_rows(layer: AdaptableLayer, stored: Stored) -> Floats:
    """(outputs, inputs * kernel)"""
    data, scale = constant_of(stored.value), constant_of(stored.scale)
    if data is None:
        raise ValueError(f"{layer.name} has no fixed weight")
    rows = (data.T if stored.turned else data).reshape(layer.shape[0], -1).astype(np.float32)
    return rows if scale is None else rows * scale.astype(np.float32)[:, np.newaxis]


def _initializers(layer: AdaptableLayer, stored: Stored, rows: Floats) -> Iterator[tuple[str, NDArray[Any]]]:
    """The weight as it was stored, and of an int8 one the scales, and the bias where that is stored by them."""
    data = constant_of(stored.value)
    assert data is not None
    if stored.scale is None:
        yield str(stored.value.name), _as_stored(rows, data, stored)
        return
    before = constant_of(stored.scale)
    assert before is not None
    scales = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-12)) / np.float32(LARGEST_INT8)
    integers = np.clip(np.rint(rows / scales[:, np.newaxis]), -LARGEST_INT8, LARGEST_INT8)
    yield str(stored.value.name), _as_stored(integers, data, stored)
    yield str(stored.scale.name), scales.astype(np.float32)
    bias = producer(layer.node.inputs[2], "DequantizeLinear") if len(layer.node.inputs) > 2 else None
    if bias is not None and bias.inputs[0] is not None and bias.inputs[1] is not None:
        numbers, steps = constant_of(bias.inputs[0]), constant_of(bias.inputs[1])
        if numbers is None or steps is None or steps.shape != scales.shape:
            raise ValueError(f"the bias of {layer.name} is quantized in a way that isn't known")
        other = (steps * (scales / before)).astype(np.float32)  # as the weight's: of the input's scale and its own
        yield str(bias.inputs[0].name), np.rint(numbers * (steps.astype(np.float64) / other)).astype(np.int32)
        yield str(bias.inputs[1].name), other


def _as_stored(rows: NDArray[Any], data: NDArray[Any], stored: Stored) -> NDArray[Any]:
    whole = rows.T if stored.turned else rows
    if data.dtype == np.float16:
        whole = np.clip(whole, *(np.finfo(np.float16).min, np.finfo(np.float16).max))
    return np.ascontiguousarray(whole.reshape(data.shape).astype(data.dtype))


def _kept(data: NDArray[Any], scale: NDArray[Any] | None) -> Floats:
    floats = data.astype(np.float32)
    if scale is None:
        return floats
    return floats * (scale if floats.ndim == 2 else scale.reshape(-1, *(1,) * (floats.ndim - 1)))
