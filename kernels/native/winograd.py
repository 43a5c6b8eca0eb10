"""Winograd convolutions as one node of our own: transforms, products and bias, strip by strip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, insert, replace
from tintype.kernels.cpu.product_conv import float_constant, plain_conv, winograd
from tintype.kernels.cpu.winograd import LEAST_CHANNELS
from tintype.kernels.native.library import ABILITY

TILE = 4
OUTPUTS = 10  # of a block, whose weights lie side by side


class NativeWinograd(Kernel):
    """A 3x3 convolution as WinogradConv (src/winograd.h), F(4x4, 3x3) of Lavin & Gray 2016.

    What ONNX Runtime does in eight nodes for `winograd4`, two of them on one thread, is one. Weights are stored in the
    order in which they are read, so that they may stay in their mapped file.
    """

    name = "native_winograd"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same sums in another order; fp32 error of some 1e-5 deviations, above 120 dB"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """3x3, stride 1, padding 1, not grouped, of a known size."""
        conv = plain_conv(node, shapes)
        shape = shapes.of(conv.source) if conv is not None else None
        if conv is None or shape is None or min(conv.weight_shape) < LEAST_CHANNELS:
            return False
        return min(int(str(shape[2])), int(str(shape[3]))) >= TILE

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, weight = plain_conv(node, Shapes()), node.inputs[1]
        if conv is None or weight is None:
            raise ValueError(f"{node.name} is no 3x3 convolution of a known size")
        name = f"{weight.name}_native"
        packed = graph.initializers.get(name)  # of another layer with the same weight
        if packed is None:
            packed = add_constant(graph, packed_weights(float_constant(weight)), name)
        bias = np.zeros(conv.weight_shape[0], np.float32) if conv.bias is None else conv.bias
        inputs = [conv.source, packed, add_constant(graph, bias, f"{name}_bias")]
        output = node.outputs[0]
        replace(output, insert(node, "WinogradConv", inputs, domain=OWN, like=output))

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 3, 3), bias (outputs); zeros around x."""
        made = winograd(TILE).reference(x.astype(np.float64), weight.astype(np.float64))
        return made + bias.reshape(-1, 1, 1)


def packed_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs, 3, 3) -> (36, blocks, inputs, 10), transformed; zeros beyond the last output."""
    outputs, inputs = weight.shape[:2]
    blocks = -(-outputs // OUTPUTS)
    padded = np.zeros((36, blocks * OUTPUTS, inputs), np.float32)
    padded[:, :outputs] = winograd(TILE).weights(weight)
    return np.ascontiguousarray(padded.reshape(36, blocks, OUTPUTS, inputs).swapaxes(2, 3))
