"""Winograd convolutions: 3x3, stride 1, with 2.25 (tile 2), 4 (tile 4) or 5.06 (tile 6) times fewer products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, replace
from tintype.kernels.cpu.product_conv import ProductWriter, plain_conv, winograd

LEAST_CHANNELS = 16  # with fewer, the transforms cost more than the products save
MOST_PIXELS_TILE_2 = 32 * 32  # beyond, what its small weights save is less than what a larger tile saves


class WinogradConv(Kernel):
    """F(tile x tile, 3x3) (Lavin & Gray 2016), in strips of rows where the transformed image is large.

    Weights grow 1.78 (tile 2), 4 (tile 4) or 7.1 times (tile 6), so a layer with few pixels may gain nothing.
    """

    targets = ("cpu",)
    exactness = "the same sums in another order; fp32 error of some 1e-5 deviations, above 120 dB"
    measured = True

    def __init__(self, tile: int) -> None:
        self.name = f"winograd{tile}"
        self._transform = winograd(tile)

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """3x3, stride 1, padding 1, not grouped, of a known size."""
        conv = plain_conv(node, shapes)
        shape = shapes.of(conv.source) if conv is not None else None
        if conv is None or shape is None or min(conv.weight_shape) < LEAST_CHANNELS:
            return False
        height, width = int(str(shape[2])), int(str(shape[3]))
        tile = self._transform.stride
        return min(height, width) >= tile and (tile > 2 or height * width <= MOST_PIXELS_TILE_2)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv = plain_conv(node, Shapes())
        if conv is None:
            raise ValueError(f"{node.name} is no 3x3 convolution of a known size")
        replace(node.outputs[0], ProductWriter(self._transform, conv, conv.source, graph).write())

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], tile: int = 4) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 3, 3); zeros around x."""
        return winograd(tile).reference(x.astype(np.float64), weight.astype(np.float64))
