"""Winograd convolutions as one node of our own: transforms, products, bias, and the sums behind it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tintype.kernels.cpu.product_conv import winograd
from tintype.kernels.native.linear import Number
from tintype.kernels.native.own_conv import OwnConv, in_blocks

TILE = 4
FEW_OUTPUTS = 32  # of a block, whose weights lie side by side
FEW_TILES = 32  # two images of 16x16: from there on transformed weights are read often enough to be worth their size


class NativeWinograd(OwnConv):
    """A 3x3 convolution as WinogradConv (src/winograd.h), F(4x4, 3x3) of Lavin & Gray 2016.

    What ONNX Runtime does in eight nodes for `winograd4`, two of them on one thread, is one; a number for each channel
    and an image of the output's size that are added behind it are added before the output is written. Weights are
    stored in the order in which they are read, so that they may stay in their mapped file.
    """

    name = "native_winograd"
    exactness = "the same sums in another order; fp32 error of some 1e-5 deviations, above 120 dB"
    operator, side = "WinogradConv", 3
    few: ClassVar[bool] = False  # whether it is for few tiles

    def suits(self, batch: int, height: int, width: int) -> bool:
        tiles = batch * -(-height // TILE) * -(-width // TILE)
        return min(height, width) >= TILE and (tiles <= FEW_TILES) == self.few

    def packed(self, weight: NDArray[Any]) -> NDArray[Any]:
        return packed_weights(weight)

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 3, 3), bias (outputs); zeros around x."""
        made = winograd(TILE).reference(x.astype(np.float64), weight.astype(np.float64))
        return made + bias.reshape(-1, 1, 1)


class NativeWinogradFew(NativeWinograd):
    """The same for a small picture (src/few_tiles.h): weights stay as they are, and are transformed on the way.

    There transformed weights would be read from memory once, four times as many bytes for nothing. Those that are
    stored as float16 stay so.
    """

    name = "native_winograd_few"
    few = True
    keeps_halves = True

    def packed(self, weight: NDArray[Any]) -> NDArray[Any]:
        return few_packed_weights(weight)


class NativeWinogradLean(NativeWinogradFew):
    """The same for a large picture, whose filters are transformed anew for every 64 tiles: for those who have little
    memory, as weights take a fourth of what transformed ones do."""

    name = "native_winograd_lean"
    few = False


def packed_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs, 3, 3) -> (36, blocks, inputs, 10), transformed; zeros beyond the last output."""
    return in_blocks(winograd(TILE).weights(weight))


def few_packed_weights(weight: NDArray[Number]) -> NDArray[Number]:
    """(outputs, inputs, 3, 3) -> (blocks, inputs, 9, 32); zeros beyond the last output."""
    outputs, inputs = weight.shape[:2]
    blocks = -(-outputs // FEW_OUTPUTS)
    padded = np.zeros((blocks * FEW_OUTPUTS, inputs, 9), weight.dtype)
    padded[:outputs] = weight.reshape(outputs, inputs, 9)
    return np.ascontiguousarray(padded.reshape(blocks, FEW_OUTPUTS, inputs, 9).transpose(0, 2, 3, 1))
