"""Winograd convolutions as one node of our own: transforms, products, bias, and the sums behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, insert, replace
from tintype.kernels.cpu.product_conv import PlainConv, float_constant, plain_conv, winograd
from tintype.kernels.cpu.winograd import LEAST_CHANNELS
from tintype.kernels.native.library import ABILITY
from tintype.kernels.native.sums import Sums

TILE = 4
OUTPUTS, FEW_OUTPUTS = 10, 32  # of a block, whose weights lie side by side
FEW_TILES = 32  # two images of 16x16: from there on transformed weights are read often enough to be worth their size


class NativeWinograd(Kernel):
    """A 3x3 convolution as WinogradConv (src/winograd.h), F(4x4, 3x3) of Lavin & Gray 2016.

    What ONNX Runtime does in eight nodes for `winograd4`, two of them on one thread, is one; a number for each channel
    and an image of the output's size that are added behind it are added before the output is written. Weights are
    stored in the order in which they are read, so that they may stay in their mapped file.
    """

    name = "native_winograd"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": ABILITY}
    exactness = "the same sums in another order; fp32 error of some 1e-5 deviations, above 120 dB"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """3x3, stride 1, padding 1, not grouped, of a known size."""
        conv = plain_conv(node, shapes)
        if conv is None or min(conv.weight_shape) < LEAST_CHANNELS:
            return False
        batch, height, width = (_dim(conv.source, shapes, axis) for axis in (0, 2, 3))
        tiles = batch * -(-height // TILE) * -(-width // TILE)
        return min(height, width) >= TILE and self._suits(tiles)

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        return (node, *Sums.behind(node.outputs[0]).nodes)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, weight = plain_conv(node, Shapes()), node.inputs[1]
        if conv is None or weight is None:
            raise ValueError(f"{node.name} is no 3x3 convolution of a known size")
        sums = Sums.behind(node.outputs[0])
        name = f"{weight.name}_{self.name}"
        packed = graph.initializers.get(name)  # of another layer with the same weight
        if packed is None:
            packed = add_constant(graph, self._packed(float_constant(weight)), name)
        inputs = [conv.source, packed, _bias(conv, graph, name), sums.shift, sums.added]
        while inputs[-1] is None:
            inputs.pop()
        last = sums.nodes[-1] if sums.nodes else node
        output = last.outputs[0]
        replace(output, insert(last, "WinogradConv", inputs, domain=OWN, like=output))

    def _suits(self, tiles: int) -> bool:
        return tiles > FEW_TILES

    def _packed(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return packed_weights(weight)

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 3, 3), bias (outputs); zeros around x."""
        made = winograd(TILE).reference(x.astype(np.float64), weight.astype(np.float64))
        return made + bias.reshape(-1, 1, 1)


class NativeWinogradFew(NativeWinograd):
    """The same for a small picture (src/few_tiles.h): weights stay as they are, and are transformed on the way.

    There transformed weights would be read from memory once, four times as many bytes for nothing.
    """

    name = "native_winograd_few"

    def _suits(self, tiles: int) -> bool:
        return tiles <= FEW_TILES

    def _packed(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return few_packed_weights(weight)


def packed_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs, 3, 3) -> (36, blocks, inputs, 10), transformed; zeros beyond the last output."""
    outputs, inputs = weight.shape[:2]
    blocks = -(-outputs // OUTPUTS)
    padded = np.zeros((36, blocks * OUTPUTS, inputs), np.float32)
    padded[:, :outputs] = winograd(TILE).weights(weight)
    return np.ascontiguousarray(padded.reshape(36, blocks, OUTPUTS, inputs).swapaxes(2, 3))


def few_packed_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs, 3, 3) -> (blocks, inputs, 9, 32); zeros beyond the last output."""
    outputs, inputs = weight.shape[:2]
    blocks = -(-outputs // FEW_OUTPUTS)
    padded = np.zeros((blocks * FEW_OUTPUTS, inputs, 9), np.float32)
    padded[:outputs] = weight.reshape(outputs, inputs, 9)
    return np.ascontiguousarray(padded.reshape(blocks, FEW_OUTPUTS, inputs, 9).transpose(0, 2, 3, 1))


def _bias(conv: PlainConv, graph: ir.Graph, name: str) -> ir.Value:
    bias = np.zeros(conv.weight_shape[0], np.float32) if conv.bias is None else conv.bias
    return add_constant(graph, bias, f"{name}_bias")


def _dim(value: ir.Value, shapes: Shapes, axis: int) -> int:
    shape = shapes.of(value)
    return 0 if shape is None else int(str(shape[axis]))
