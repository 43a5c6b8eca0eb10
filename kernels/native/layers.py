"""Linear layers as our own nodes do them whole: a product with fixed weights and what alone reads it in turn."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import MICROSOFT, OWN, Kernel, Shapes, constant_of, insert, only_reader, producer, replace
from tintype.kernels.graph.linear import fixed_bias

LEAST_ROWS = 8  # with fewer, weights are all that is read, and ONNX Runtime reads them as fast
PLAIN, GELU, SILU, GEGLU = range(4)  # the attribute `activation`, see src/kernels.h

Accepts = Callable[[ir.Node, Shapes], bool]  # a MatMul or Gemm whose weight a kernel can take


@dataclass(frozen=True, slots=True)
class FoundLayer:
    """A product with fixed weights and what is done to it before anyone else reads it."""

    node: ir.Node
    nodes: tuple[ir.Node, ...]  # in their order; the last one's output is the layer's
    source: ir.Value
    weight: ir.Value
    width: int  # outputs
    bias: ir.Value | None
    activation: int
    added: ir.Value | None
    down: ir.Value | None  # of what is added by low rank, (inputs, rank)
    up: ir.Value | None  # (rank, outputs); of a GEGLU's value and gate the same one (rank, 2 * outputs)

    def biases(self) -> NDArray[np.float32]:
        """(1, outputs)"""
        known = constant_of(self.bias)
        return np.zeros((1, self.width), np.float32) if known is None else known.reshape(1, -1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FoundNode:
    """What becomes one node: a layer, or the value and the gate of a GEGLU."""

    layers: tuple[FoundLayer, ...]
    nodes: tuple[ir.Node, ...]  # that it takes the place of
    last: ir.Node  # of them, whose output it gives
    activation: int


class LayerKernel(Kernel):
    """A linear layer, or with `gated` the two that `geglu` has made of one, as one node of ours.

    It takes what a pair of low rank adds, too (`kernels.graph.low_rank`). operator: what it is called.
    """

    targets = ("cpu",)
    measured = True
    operator: ClassVar[str]
    gated: ClassVar[bool] = False

    @abstractmethod
    def accepts(self, node: ir.Node, shapes: Shapes) -> bool:
        """Whether the kernel can take the weight of a MatMul or Gemm."""

    @abstractmethod
    def constants(self, layers: tuple[FoundLayer, ...], graph: ir.Graph) -> list[ir.Value]:
        """The node's inputs between what it multiplies and what it adds."""

    def attributes(self) -> dict[str, int]:
        """The node's attributes beside `activation`."""
        return {}

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A layer of eight rows at least; of a GEGLU the one of the value, with a gate as wide behind a Gelu."""
        return self._found(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = self._found(node, Shapes())
        return (node,) if found is None else found.nodes

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = self._found(node, Shapes())
        if found is None:
            raise ValueError(f"{node.name} is no such layer of a known size")
        first = found.layers[0]
        inputs = [first.source, *self.constants(found.layers, graph), first.added, first.down, first.up]
        while inputs[-1] is None:
            inputs.pop()
        output, how = found.last.outputs[0], {"activation": found.activation, **self.attributes()}
        replace(output, insert(found.last, self.operator, inputs, domain=OWN, attributes=how, like=output))

    def _found(self, node: ir.Node, shapes: Shapes) -> FoundNode | None:
        if self.gated:
            return find_gated(node, shapes, self.accepts)
        layer = find_layer(node, shapes, self.accepts)
        return None if layer is None else FoundNode((layer,), layer.nodes, layer.nodes[-1], layer.activation)


def biases_of(layers: tuple[FoundLayer, ...]) -> NDArray[np.float32]:
    """(layers, outputs)"""
    return np.concatenate([layer.biases() for layer in layers])


def is_turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1


def find_layer(node: ir.Node, shapes: Shapes, accepts: Accepts, half: int | None = None) -> FoundLayer | None:
    """The linear layer that begins at a node, with as much behind it as one node of ours does; eight rows at least.

    half: of a GEGLU, the value's is 0 and the gate's 1.
    """
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm") or not accepts(node, shapes):
        return None
    source, weight = node.inputs[0], node.inputs[1]
    shape, matrix = shapes.of(source), shapes.of(weight)
    if source is None or weight is None or shape is None or matrix is None or len(matrix) != 2:
        return None
    dims = (*shape, *matrix)
    if len(shape) < 2 or not all(isinstance(dim, int) and dim > 0 for dim in dims):
        return None
    if math.prod(int(str(dim)) for dim in shape[:-1]) < LEAST_ROWS or source.dtype != ir.DataType.FLOAT:
        return None
    nodes, bias, activation, added = [node], None, PLAIN, None
    width = int(str(matrix[0 if is_turned(node) else 1]))
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
    down, up = _take_low_rank(nodes, source, shapes, width, half)
    activation, bias = _activate(nodes, bias, width)
    add = only_reader(nodes[-1].outputs[0], "Add")
    if add is not None and add.inputs[0] is not add.inputs[1]:
        other = add.inputs[1] if add.inputs[0] is nodes[-1].outputs[0] else add.inputs[0]
        alike = shapes.of(other) == (*shape[:-1], width) == shapes.of(add.outputs[0])
        if other is not None and other.const_value is None and other.dtype == ir.DataType.FLOAT and alike:
            nodes, added = [*nodes, add], other
    return FoundLayer(node, tuple(nodes), source, weight, width, bias, activation, added, down, up)


def _take_low_rank(
    nodes: list[ir.Node], source: ir.Value, shapes: Shapes, width: int, half: int | None
) -> tuple[ir.Value | None, ir.Value | None]:
    """Takes what adds (source . down) . up to what these nodes give; returns both, or None twice.

    Where a half of a layer adds by its half of up, that is the whole one.
    """
    output, nothing = nodes[-1].outputs[0], (None, None)
    total = only_reader(output, "Add")
    if total is None or total.inputs[0] is total.inputs[1]:
        return nothing
    outer = producer(total.inputs[1] if total.inputs[0] is output else total.inputs[0], "MatMul")
    inner = producer(outer.inputs[0], "MatMul") if outer is not None else None
    if outer is None or inner is None or inner.inputs[0] is not source or len(outer.outputs[0].uses()) != 1:
        return nothing
    down, up = inner.inputs[1], outer.inputs[1]
    split = producer(up, "Split")
    if half is not None:
        if split is None or len(split.outputs) != 2 or split.outputs[half] is not up:
            return nothing
        up, width = split.inputs[0], 2 * width
    if any(value is None or not value.is_graph_input() or value.dtype != ir.DataType.FLOAT for value in (down, up)):
        return nothing
    low, high = shapes.of(down) or (), shapes.of(up) or ()
    if len(low) != 2 or not isinstance(low[1], int) or high != (low[1], width):
        return nothing
    nodes += [inner, *([] if split is None else [split]), outer, total]
    return down, up


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


def find_gated(node: ir.Node, shapes: Shapes, accepts: Accepts) -> FoundNode | None:
    """The layer at a node as the value of a GEGLU, and with it the layer of its gate and the Mul of both."""
    value = find_layer(node, shapes, accepts, half=0)
    if value is None or value.activation != PLAIN or value.added is not None:
        return None
    output = value.nodes[-1].outputs[0]
    product = only_reader(output, "Mul")
    if product is None or product.inputs[0] is product.inputs[1]:
        return None
    other = product.inputs[1] if product.inputs[0] is output else product.inputs[0]
    gate = _gate_behind(other, shapes, accepts)
    if gate is None or gate.activation != GELU or gate.source is not value.source:
        return None
    if len(gate.nodes[-1].outputs[0].uses()) != 1 or gate.nodes[-1].outputs[0].is_graph_output():
        return None
    if gate.width != value.width or (gate.down, gate.up) != (value.down, value.up):
        return None
    nodes = tuple(dict.fromkeys((*value.nodes, *gate.nodes, product)))
    return FoundNode((value, gate), nodes, product, GEGLU)


def _gate_behind(value: ir.Value | None, shapes: Shapes, accepts: Accepts) -> FoundLayer | None:
    """The linear layer, without a residual, whose last node makes a value."""
    made_by = value.producer() if value is not None else None
    before: list[ir.Value | None] = []
    if made_by is not None and made_by.op_type in ("Gelu", "BiasGelu"):
        before = [made_by.inputs[0]]
    for _ in range(3):  # behind its bias, and behind what is added by low rank
        for each in before:
            product = producer(each, "MatMul")
            layer = find_layer(product, shapes, accepts, half=1) if product is not None else None
            if layer is not None and layer.nodes[-1] is made_by:
                return layer
        sums = [producer(each, "Add") for each in before]
        before = [each for node in sums if node is not None for each in node.inputs]
    return None
