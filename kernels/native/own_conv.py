"""What convolutions of floats have in common that become one node of our own, with the sums behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, insert, replace
from tintype.kernels.cpu.product_conv import PlainConv, float_constant, plain_conv
from tintype.kernels.cpu.winograd import LEAST_CHANNELS
from tintype.kernels.graph.linear import finite_halves
from tintype.kernels.native.library import ABILITY
from tintype.kernels.native.sums import Sums

OUTPUTS = 10  # of a block, whose weights lie side by side


class OwnConv(Kernel):
    """A convolution of stride 1 as the node `operator`, with a number for each channel and an image that are added.

    side: of the filter, odd. packed: (outputs, inputs, side, side) -> as the operator takes them. suits: whether it
    does pictures of that size.
    """

    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    measured = True
    operator: ClassVar[str]
    side: ClassVar[int]

    def packed(self, weight: NDArray[Any]) -> NDArray[Any]:
        raise NotImplementedError

    def suits(self, batch: int, height: int, width: int) -> bool:
        raise NotImplementedError

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Stride 1, an output as large as the input, not grouped, of a known size."""
        conv = plain_conv(node, shapes, self.side)
        if conv is None or min(conv.weight_shape) < LEAST_CHANNELS:
            return False
        shape = shapes.of(conv.source)
        return shape is not None and self.suits(*(int(str(shape[axis])) for axis in (0, 2, 3)))

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        return (node, *Sums.behind(node.outputs[0]).nodes)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, weight = plain_conv(node, Shapes(), self.side), node.inputs[1]
        if conv is None or weight is None:
            raise ValueError(f"{node.name} is no such convolution of a known size")
        sums = Sums.behind(node.outputs[0])
        name = f"{weight.name}_{self.name}"
        packed = graph.initializers.get(name)  # of another layer with the same weight
        if packed is None:
            halves = finite_halves(weight) if self.keeps_halves else None
            packed = add_constant(graph, self.packed(float_constant(weight) if halves is None else halves), name)
        inputs = [conv.source, packed, _bias(conv, graph, name), sums.shift, sums.added]
        while inputs[-1] is None:
            inputs.pop()
        last = sums.nodes[-1] if sums.nodes else node
        output = last.outputs[0]
        replace(output, insert(last, self.operator, inputs, domain=OWN, like=output))


def in_blocks(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """(matrices, outputs, inputs) -> (matrices, blocks, inputs, 10); zeros beyond the last output."""
    count, outputs, inputs = weights.shape
    blocks = -(-outputs // OUTPUTS)
    padded = np.zeros((count, blocks * OUTPUTS, inputs), np.float32)
    padded[:, :outputs] = weights
    return np.ascontiguousarray(padded.reshape(count, blocks, OUTPUTS, inputs).swapaxes(2, 3))


def _bias(conv: PlainConv, graph: ir.Graph, name: str) -> ir.Value:
    bias = np.zeros(conv.weight_shape[0], np.float32) if conv.bias is None else conv.bias
    return add_constant(graph, bias, f"{name}_bias")
