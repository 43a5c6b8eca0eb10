"""Linear layers as one node of our own: the product, its bias, an activation, and a residual behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Shapes, add_constant, constant_of
from tintype.kernels.cpu.float_linear import LARGEST_BYTES
from tintype.kernels.cpu.product_conv import float_constant, is_fixed
from tintype.kernels.graph.linear import finite_halves, half_weight
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU, FoundLayer, LayerKernel, biases_of, is_turned
from tintype.kernels.native.library import ABILITY
from tintype.kernels.portable.gelu import GeluAsMicrosofts

Number = TypeVar("Number", bound=np.generic)

COLUMNS = 32  # of a panel, whose weights lie side by side
MOST_GATED_INPUTS = 1280


class NativeLinear(LayerKernel):
    """MatMul or Gemm with fixed weights, and what alone reads it in turn, as LinearLayer (src/linear.h).

    ONNX Runtime makes a pass over the output for each of them. Weights are stored in the order in which they are read,
    once, so that they may stay in their mapped file; those that are stored as float16 stay so, and become floats a few
    panels at a time, in a core's cache.
    """

    name = "native_linear"
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same sums in another order, the same functions; fp32 error below 1e-5 on unit-variance data"
    operator = "LinearLayer"
    keeps_halves = True

    def accepts(self, node: ir.Node, shapes: Shapes) -> bool:
        """A weight that is fixed as floats or float16, or stored otherwise and small as floats."""
        weight = node.inputs[1]
        if not is_fixed(weight) or constant_of(weight) is not None or half_weight(weight) is not None:
            return is_fixed(weight)
        dims = shapes.of(weight) or ()
        numbers = [int(str(dim)) for dim in dims if isinstance(dim, int)]
        return len(numbers) == len(dims) and math.prod(numbers) * 4 <= LARGEST_BYTES

    def constants(self, layers: tuple[FoundLayer, ...], graph: ir.Graph) -> list[ir.Value]:
        name = f"{layers[0].weight.name}_{'native_geglu' if self.gated else 'native'}"
        packed = graph.initializers.get(name)  # of another layer with the same weight
        if packed is None:
            packed = add_constant(graph, packed_weights(*_weights(layers)), name)
        return [packed, add_constant(graph, biases_of(layers), f"{name}_bias")]

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any], activation: int = PLAIN) -> NDArray[Any]:
        """x (..., inputs), weight (inputs, outputs), bias (outputs); with GEGLU each of two, the value's first."""
        if activation == GEGLU:
            gate = NativeLinear.reference(x, weight[1], bias[1], GELU)
            return NativeLinear.reference(x, weight[0], bias[0]) * gate
        made = x.astype(np.float64) @ weight + bias
        if activation == GELU:
            return GeluAsMicrosofts.reference(made)
        return made / (1.0 + np.exp(-made)) if activation == SILU else made


class NativeGeglu(NativeLinear):
    """The two linear layers that `geglu` has made of one, the gate's Gelu and the product of both, as one LinearLayer.

    The value's columns and the gate's lie side by side, so that neither is ever written.
    """

    name = "native_geglu"
    kind = "Geglu"
    gated = True

    def accepts(self, node: ir.Node, shapes: Shapes) -> bool:
        """As of one layer, and no more than 1,280 inputs."""
        *_, inputs = shapes.of(node.inputs[0]) or (None,)
        return super().accepts(node, shapes) and isinstance(inputs, int) and inputs <= MOST_GATED_INPUTS


def _weights(layers: Sequence[FoundLayer]) -> list[NDArray[Any]]:
    """(inputs, outputs) each, float16 where all are stored so, else float32."""
    halves = [finite_halves(layer.weight) for layer in layers]
    kept: list[NDArray[Any]] = [half for half in halves if half is not None]
    known = kept if len(kept) == len(layers) else [float_constant(layer.weight) for layer in layers]
    return [weight.T if is_turned(layer.node) else weight for layer, weight in zip(layers, known, strict=True)]


def packed_weights(*weights: NDArray[Number]) -> NDArray[Number]:
    """(inputs, outputs) -> (panels, inputs, 32), zeros beyond the last output; of a value and its gate 16 of each."""
    inputs, outputs = weights[0].shape
    each = COLUMNS // len(weights)
    panels = -(-outputs // each)
    packed = np.zeros((panels, inputs, len(weights), each), weights[0].dtype)
    for part, weight in enumerate(weights):
        padded = np.zeros((inputs, panels * each), weight.dtype)
        padded[:, :outputs] = weight
        packed[:, :, part] = padded.reshape(inputs, panels, each).swapaxes(0, 1)
    return packed.reshape(panels, inputs, COLUMNS)
