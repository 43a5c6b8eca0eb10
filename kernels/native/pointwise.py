"""1x1 convolutions as one node of our own: a product whose columns are pixels, and the sums behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tintype.kernels.native.own_conv import OwnConv, in_blocks

LEAST_PIXELS = 16  # of a picture: two vectors of AVX2


class NativePointwise(OwnConv):
    """A 1x1 convolution as PointwiseConv (src/pointwise.h).

    ONNX Runtime's takes pictures in blocks of channels, which are turned before and behind it where its neighbours are
    nodes of our own. Weights of ten outputs stay in the nearest cache while the pixels go by.
    """

    name = "native_pointwise"
    exactness = "the same sums in another order; fp32 error of some 1e-6 deviations"
    operator, side = "PointwiseConv", 1

    def suits(self, batch: int, height: int, width: int) -> bool:
        return height * width >= LEAST_PIXELS

    def packed(self, weight: NDArray[Any]) -> NDArray[Any]:
        return pointwise_weights(weight)

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 1, 1), bias (outputs)."""
        made = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0].astype(np.float64), x.astype(np.float64), optimize=True)
        return made + bias.reshape(-1, 1, 1)


def pointwise_weights(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(outputs, inputs, 1, 1) -> (blocks, inputs, 10); zeros beyond the last output."""
    return in_blocks(weight.reshape(1, *weight.shape[:2]))[0]
