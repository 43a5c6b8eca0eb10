"""Linear layers as one node of our own: the product, its bias, an activation, and a residual behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    OWN,
    Kernel,
    Shapes,
    add_constant,
    constant_of,
    insert,
    only_reader,
    producer,
    replace,
)
from tintype.kernels.cpu.float_linear import LARGEST_BYTES
from tintype.kernels.cpu.product_conv import float_constant, is_fixed
from tintype.kernels.graph.linear import fixed_bias
from tintype.kernels.native.library import ABILITY
from tintype.kernels.portable.gelu import GeluAsMicrosofts

COLUMNS = 32  # of a panel, whose weights lie side by side
MOST_GATED_INPUTS = 1280
LEAST_ROWS = 8  # with fewer, weights are all that is read, and ONNX Runtime reads them as fast
PLAIN, GELU, SILU, GEGLU = range(4)  # the attribute `activation`, see src/kernels.h


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
        return _layer(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        layer = _layer(node, Shapes())
        return (node,) if layer is None else layer.nodes

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        layer = _layer(node, Shapes())
        if layer is None:
            raise ValueError(f"{node.name} is no linear layer of a known size")
        _write(layer, lambda: packed_weights(layer.weights()), layer.biases(), graph, "native")

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
        return _gated(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = _gated(node, Shapes())
        return (node,) if found is None else tuple(dict.fromkeys((*found[0].nodes, *found[1].nodes, found[2])))

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = _gated(node, Shapes())
        if found is None:
            raise ValueError(f"{node.name} is no value of a GEGLU")
        value, gate, product = found
        whole = _Layer(node, (product,), value.source, value.weight, value.width, None, GEGLU, None)
        biases = np.concatenate([value.biases(), gate.biases()])
        _write(whole, lambda: packed_weights(value.weights(), gate.weights()), biases, graph, "native_geglu")


@dataclass(frozen=True, slots=True)
class _Layer:
    """A product with fixed weights and what is done to it before anyone else reads it."""

    node: ir.Node
    nodes: tuple[ir.Node, ...]  # in their order; the last one's output is the layer's
    source: ir.Value
    weight: ir.Value
    width: int  # outputs
    bias: ir.Value | None
    activation: int
    added: ir.Value | None

    def weights(self) -> NDArray[np.float32]:
        """(inputs, outputs)"""
        weight = float_constant(self.weight)
        return weight.T if _is_turned(self.node) else weight

    def biases(self) -> NDArray[np.float32]:
        """(1, outputs)"""
        known = constant_of(self.bias)
        return np.zeros((1, self.width), np.float32) if known is None else known.reshape(1, -1).astype(np.float32)


def packed_weights(*weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(inputs, outputs) -> (panels, inputs, 32), zeros beyond the last output; of a value and its gate 16 of each."""
    inputs, outputs = weights[0].shape
    each = COLUMNS // len(weights)
    panels = -(-outputs // each)
    packed = np.zeros((panels, inputs, len(weights), each), np.float32)
    for part, weight in enumerate(weights):
        padded = np.zeros((inputs, panels * each), np.float32)
        padded[:, :outputs] = weight
        packed[:, :, part] = padded.reshape(inputs, panels, each).swapaxes(0, 1)
    return packed.reshape(panels, inputs, COLUMNS)


def _write(
    layer: _Layer, weights: Callable[[], NDArray[np.float32]], biases: NDArray[np.float32], graph: ir.Graph, suffix: str
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


def _is_turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def _layer(node: ir.Node, shapes: Shapes) -> _Layer | None:
    """The linear layer that begins at a node, with as much behind it as one node of ours does."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    source, weight = node.inputs[0], node.inputs[1]
    shape, matrix = shapes.of(source), shapes.of(weight)
    if source is None or weight is None or shape is None or matrix is None or len(matrix) != 2 or not is_fixed(weight):
        return None
    dims = (*shape, *matrix)
    if len(shape) < 2 or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        return None
    rows, numbers = int(np.prod([int(str(dim)) for dim in shape[:-1]])), int(str(matrix[0])) * int(str(matrix[1]))
    is_stored = constant_of(weight) is None
    if rows < LEAST_ROWS or source.dtype != ir.DataType.FLOAT or (is_stored and numbers * 4 > LARGEST_BYTES):
        return None
    nodes, bias, activation, added = [node], None, PLAIN, None
    width = int(str(matrix[0 if _is_turned(node) else 1]))
    if node.op_type == "Gemm":
        plain = all(node.attributes.get_float(name, 1.0) == 1.0 for name in ("alpha", "beta"))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        known = constant_of(bias)
        if not plain or node.attributes.get_int("transA", 0) != 0 or (bias is not None and known is None):
            return None
        if known is not None and known.size != width:
            return None
    if bias is None:
        add = only_reader(node.outputs[0], "Add")
        bias = fixed_bias(add, node.outputs[0], width)
        nodes += [add] if add is not None and bias is not None else []
    activation, bias = _activate(nodes, bias, width)
    add = only_reader(nodes[-1].outputs[0], "Add")
    if add is not None and add.inputs[0] is not add.inputs[1]:
        other = add.inputs[1] if add.inputs[0] is nodes[-1].outputs[0] else add.inputs[0]
        alike = shapes.of(other) == (*shape[:-1], width) == shapes.of(add.outputs[0])
        if other is not None and other.const_value is None and other.dtype == ir.DataType.FLOAT and alike:
            nodes, added = [*nodes, add], other
    return _Layer(node, tuple(nodes), source, weight, width, bias, activation, added)


def _activate(nodes: list[ir.Node], bias: ir.Value | None, width: int) -> tuple[int, ir.Value | None]:
    """Takes the activation that alone reads the last of these nodes; returns which, and the bias."""
    output = nodes[-1].outputs[0]
    readers = {use.node for use in output.uses()}
    if output.is_graph_output():
        return PLAIN, bias
    if len(readers) == 1:
        (reader,) = readers
        is_exact = reader.attributes.get_string("approximate", "none") == "none"
        if reader.op_type == "Gelu" and reader.domain == "" and is_exact:
            nodes.append(reader)
            return GELU, bias
        if reader.op_type == "BiasGelu" and reader.domain == MICROSOFT and bias is None:
            known = constant_of(reader.inputs[1])
            if reader.inputs[0] is output and known is not None and known.shape == (width,):
                nodes.append(reader)
                return GELU, reader.inputs[1]
    sigmoid = next((reader for reader in readers if reader.op_type == "Sigmoid" and reader.domain == ""), None)
    if sigmoid is not None and len(readers) == 2:
        product = only_reader(sigmoid.outputs[0], "Mul")
        if product is not None and set(product.inputs) == {output, sigmoid.outputs[0]}:
            nodes += [sigmoid, product]
            return SILU, bias
    return PLAIN, bias


def _gated(node: ir.Node, shapes: Shapes) -> tuple[_Layer, _Layer, ir.Node] | None:
    """The layer at a node as the value of a GEGLU, the layer of its gate, and the Mul of both."""
    value = _layer(node, shapes)
    if value is None or value.activation != PLAIN or value.added is not None:
        return None
    output = value.nodes[-1].outputs[0]
    product = only_reader(output, "Mul")
    if product is None or product.inputs[0] is product.inputs[1]:
        return None
    other = product.inputs[1] if product.inputs[0] is output else product.inputs[0]
    gate = _layer_of(other, shapes)
    if gate is None or gate.activation != GELU or gate.source is not value.source:
        return None
    if len(gate.nodes[-1].outputs[0].uses()) != 1 or gate.nodes[-1].outputs[0].is_graph_output():
        return None
    inputs = shapes.of(value.source)
    fits = gate.width == value.width and inputs is not None and int(str(inputs[-1])) <= MOST_GATED_INPUTS
    return (value, gate, product) if fits else None


def _layer_of(value: ir.Value | None, shapes: Shapes) -> _Layer | None:
    """The linear layer, without a residual, whose last node makes a value."""
    made_by = value.producer() if value is not None else None
    before: ir.Value | None = None
    if made_by is not None and made_by.op_type in ("Gelu", "BiasGelu"):
        before = made_by.inputs[0]
    product = producer(before, "MatMul")
    if product is None:
        add = producer(before, "Add")
        products = (producer(each, "MatMul") for each in add.inputs) if add is not None else iter(())
        product = next((each for each in products if each is not None), None)
    layer = _layer(product, shapes) if product is not None else None
    return layer if layer is not None and layer.nodes[-1] is made_by else None
