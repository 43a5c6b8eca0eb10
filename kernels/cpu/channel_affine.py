"""A scale and a shift by channel as one pass over the image: the last two nodes of every GroupNormalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, add_constant, constant_of, insert, only_reader, replace


class ChannelAffineAsBatchNorm(Kernel):
    """Mul and Add by channel as a BatchNormalization with mean 0, variance 1 and no epsilon.

    ONNX Runtime runs it on one thread, and Mul and Add on all: it wins where an image is small, so that waking the
    threads twice costs more than the second pass.
    """

    name = "channel_affine"
    targets = ("cpu",)
    exactness = "the same two operations; one rounding less where the processor fuses them"
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Mul of an image (batch, channels, ...) of known sizes by a fixed scale, then Add of a fixed bias."""
        return affine_parts(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = affine_parts(node, Shapes())
        return (node,) if found is None else (node, found[1])

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        found = affine_parts(node, Shapes())
        if found is None:
            raise ValueError(f"{node.name} scales and shifts no image")
        image, add, scale, bias = found
        channels, stem = len(scale), f"{node.name}_channels"
        constants = (
            add_constant(graph, scale, f"{stem}_scale"),
            add_constant(graph, bias, f"{stem}_bias"),
            add_constant(graph, np.zeros(channels, np.float32), f"zeros_{channels}_float"),
            add_constant(graph, np.ones(channels, np.float32), f"ones_{channels}_float"),
        )
        output = add.outputs[0]
        inputs = [image, *constants]
        replace(output, insert(node, "BatchNormalization", inputs, attributes={"epsilon": 0.0}, like=output))

    @staticmethod
    def reference(x: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any]) -> NDArray[Any]:
        """x (batch, channels, ...); scale and bias (channels,)."""
        along = (-1,) + (1,) * (x.ndim - 2)
        return x.astype(np.float64) * scale.reshape(along) + bias.reshape(along)


Parts = tuple[ir.Value, ir.Node, NDArray[np.float32], NDArray[np.float32]]


def affine_parts(node: ir.Node, shapes: Shapes) -> Parts | None:
    """The image, the Add, scale and bias (channels,), when this node is such a Mul."""
    if node.op_type != "Mul" or node.domain != "":
        return None
    add = only_reader(node.outputs[0], "Add")
    if add is None:
        return None
    image = next((value for value in node.inputs if constant_of(value) is None), None)
    shape = shapes.of(image)
    if image is None or shape is None or len(shape) < 3 or not all(isinstance(dim, int) for dim in shape):
        return None
    channels = int(str(shape[1]))
    scale, bias = (_by_channel(each, channels, len(shape)) for each in (node, add))
    return (image, add, scale, bias) if scale is not None and bias is not None else None


def _by_channel(node: ir.Node, channels: int, rank: int) -> NDArray[np.float32] | None:
    """The fixed operand of a Mul or Add as (channels,), when it has a number for each channel."""
    known = [constant for value in node.inputs if (constant := constant_of(value)) is not None]
    if len(node.inputs) != 2 or len(known) != 1 or known[0].dtype != np.float32:
        return None
    expected = (channels,) + (1,) * (rank - 2)
    return known[0].reshape(channels) if known[0].shape in (expected, (1, *expected)) else None
