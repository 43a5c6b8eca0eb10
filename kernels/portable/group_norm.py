"""GroupNormalization in a canonical graph: which ones kernels take, and what it means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, add_constant, constant_of


class GroupNorm(Kernel):
    """What kernels of GroupNormalization (Wu & He 2018) share; each says what it becomes."""

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Any rank from 3 on, with scale and bias fixed in the graph, one for each channel."""
        if node.op_type != "GroupNormalization" or node.domain != "":
            return False
        shape = shapes.of(node.inputs[0])
        if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
            return False
        scale, bias = constant_of(node.inputs[1]), constant_of(node.inputs[2])
        return scale is not None and bias is not None and scale.shape == bias.shape == (shape[1],)

    @staticmethod
    def reference(
        x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any], groups: int, epsilon: float
    ) -> NDArray[Any]:
        """x (batch, channels, ...); scale and bias (channels,)."""
        grouped = x.astype(np.float64).reshape(x.shape[0], groups, -1)
        centred = grouped - grouped.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        broadcast = (-1,) + (1,) * (x.ndim - 2)
        return normed.reshape(x.shape) * scale.reshape(broadcast) + bias.reshape(broadcast)


def by_channel(node: ir.Node, index: int, graph: ir.Graph) -> ir.Value:
    """Scale or bias shaped so that it broadcasts over everything but the channels."""
    value, source = node.inputs[index], node.inputs[0]
    data = constant_of(value)
    if data is None or value is None or source is None or source.shape is None:
        raise ValueError(f"{node.name} has no fixed scale or bias")
    return add_constant(graph, data.reshape((-1,) + (1,) * (len(source.shape) - 2)), f"{value.name}_by_channel")
