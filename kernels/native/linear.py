"""Linear layers as one node of our own: the product, its bias, an activation, and a residual behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, constant_of, insert, replace
from tintype.kernels.cpu.float_linear import LARGEST_BYTES
from tintype.kernels.cpu.product_conv import float_constant, is_fixed
from tintype.kernels.native.layers import GEGLU, GELU, PLAIN, SILU, FoundLayer, find_gated, find_layer, is_turned
from tintype.kernels.native.library import ABILITY
from tintype.kernels.portable.gelu import GeluAsMicrosofts

Number = TypeVar("Number", bound=np.generic)

COLUMNS = 32  # of a panel, whose weights lie side by side
MOST_GATED_INPUTS = 1280


class NativeLinear(Kernel):
    """MatMul or Gemm with fixed weights, and what alone reads it in turn, as LinearLayer (src/linear.h).

    ONNX Runtime makes a pass over the output for each of them. Weights are stored in the order in which they are read,
    once, so that they may stay in their mapped file.
    """

    name = "native_linear"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same sums in another order, the same functions; fp32 error below 1e-5 on unit-variance data"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A float weight, or a stored one that is small as floats, and eight rows at least."""
        return find_layer(node, shapes, _has_floats) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        layer = find_layer(node, Shapes(), _has_floats)
        return (node,) if layer is None else layer.nodes

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        layer = find_layer(node, Shapes(), _has_floats)
        if layer is None:
            raise ValueError(f"{node.name} is no linear layer of a known size")
        _write(layer, lambda: packed_weights(_floats(layer)), layer.biases(), graph, "native")

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

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """The layer of the value, with a gate of its own width behind a Gelu, and no more than 1,280 inputs."""
        found = find_gated(node, shapes, _has_floats)
        return found is not None and _inputs(found[0].source, shapes) <= MOST_GATED_INPUTS

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = find_gated(node, Shapes(), _has_floats)
        return (node,) if found is None else tuple(dict.fromkeys((*found[0].nodes, *found[1].nodes, found[2])))

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = find_gated(node, Shapes(), _has_floats)
        if found is None:
            raise ValueError(f"{node.name} is no value of a GEGLU")
        value, gate, product = found
        whole = FoundLayer(node, (product,), value.source, value.weight, value.width, None, GEGLU, None)
        biases = np.concatenate([value.biases(), gate.biases()])
        _write(whole, lambda: packed_weights(_floats(value), _floats(gate)), biases, graph, "native_geglu")


def _has_floats(node: ir.Node, shapes: Shapes) -> bool:
    """A weight that is fixed as floats, or stored otherwise and small as floats."""
    weight = node.inputs[1]
    if not is_fixed(weight) or constant_of(weight) is not None:
        return is_fixed(weight)
    dims = shapes.of(weight) or ()
    return all(isinstance(dim, int) for dim in dims) and math.prod(int(str(dim)) for dim in dims) * 4 <= LARGEST_BYTES


def _floats(layer: FoundLayer) -> NDArray[np.float32]:
    """(inputs, outputs)"""
    weight = float_constant(layer.weight)
    return weight.T if is_turned(layer.node) else weight


def _inputs(source: ir.Value, shapes: Shapes) -> int:
    dims = shapes.of(source)
    return int(str(dims[-1])) if dims is not None else 0


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


def _write(
    layer: FoundLayer,
    weights: Callable[[], NDArray[np.float32]],
    biases: NDArray[np.float32],
    graph: ir.Graph,
    suffix: str,
) -> None:
    name = f"{layer.weight.name}_{suffix}"
    packed = graph.initializers.get(name)  # of another layer with the same weight
    if packed is None:
        packed = add_constant(graph, weights(), name)
    inputs = [layer.source, packed, add_constant(graph, biases, f"{name}_bias")]
    if layer.added is not None:
        inputs.append(layer.added)
    last = layer.nodes[-1]
    attributes = {"activation": layer.activation}
    output = last.outputs[0]
    replace(output, insert(last, "LinearLayer", inputs, domain=OWN, attributes=attributes, like=output))
