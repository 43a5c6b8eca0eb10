"""Convolutions with channels last, as com.microsoft NhwcConv: what tensor cores and CUDA's GroupNorm want."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import (
    MICROSOFT,
    Kernel,
    Shapes,
    add_lazy,
    describe,
    insert,
    note_largest,
    producer,
    rank_of,
    replace,
)

CHANNELS_LAST, CHANNELS_SECOND = (0, 2, 3, 1), (0, 3, 1, 2)  # a picture to (batch, height, width, channels), and back


class ConvChannelsLast(Kernel):
    """A 2-D Conv between two Transposes; `channels_last` then lets neighbouring Transposes meet and vanish.

    Not run on a GPU yet. What it means is tested on a processor, by its plain form.
    """

    name = "nhwc_conv"
    targets: ClassVar[tuple[str, ...]] = ("cuda",)
    exactness = "the same sums; their order is the device's library's, as before"
    balanced_only = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """A weight fixed in the graph, float or stored as float16, and explicit padding."""
        if node.op_type != "Conv" or node.domain != "" or rank_of(shapes.of(node.inputs[0])) != 4:
            return False
        if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return False
        stored = stored_weight(node.inputs[1])
        return stored is not None and stored.shape is not None and len(stored.shape) == 4

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        stored, output = stored_weight(node.inputs[1]), node.outputs[0]
        if stored is None or stored.const_value is None:
            raise ValueError(f"{node.name} has no fixed weight")
        tensor = stored.const_value
        outputs, inputs, height, width = (int(size) for size in tensor.shape.numpy())
        turned = add_lazy(
            graph,
            f"{stored.name}_channels_last",
            tensor.dtype,
            (outputs, height, width, inputs),
            lambda: tensor.numpy().transpose(CHANNELS_LAST),
        )
        if tensor.dtype != ir.DataType.FLOAT:
            turned = _as_float(turned, node)
        source = channels_last(node.inputs[0], node)
        conv = insert(
            node,
            "NhwcConv",
            [source, turned, *node.inputs[2:]],
            domain=MICROSOFT,
            attributes=dict(node.attributes),
        )
        conv.shape, conv.dtype = turned_shape(output, CHANNELS_LAST), ir.DataType.FLOAT
        note_largest(conv, output)
        attributes = {"perm": list(CHANNELS_SECOND)}
        replace(output, insert(node, "Transpose", [conv], attributes=attributes, like=output))

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any], pad: int = 0) -> NDArray[Any]:
        """x (batch, height, width, inputs), weight (outputs, kh, kw, inputs), zeros around, stride 1."""
        padded = np.pad(x.astype(np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        _, rows, columns, _ = weight.shape
        height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
        return sum(
            np.einsum("bhwi,oi->bhwo", padded[:, row : row + height, column : column + width], weight[:, row, column])
            for row in range(rows)
            for column in range(columns)
        )


def stored_weight(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a weight: itself, or what a Cast to float reads; None when it isn't fixed."""
    cast = producer(value, "Cast")
    stored = cast.inputs[0] if cast is not None else value
    return stored if stored is not None and stored.const_value is not None and not stored.is_graph_input() else None


def channels_last(value: ir.Value | None, before: ir.Node) -> ir.Value:
    """A picture with its channels last."""
    if value is None:
        raise ValueError(f"{before.name} reads no picture")
    turned = insert(before, "Transpose", [value], attributes={"perm": list(CHANNELS_LAST)})
    describe(turned, turned_shape(value, CHANNELS_LAST), value.dtype)
    note_largest(turned, value)
    return turned


def turned_shape(value: ir.Value, axes: tuple[int, ...]) -> ir.Shape | None:
    """The shape of a Transpose's output."""
    return ir.Shape([value.shape[axis] for axis in axes]) if value.shape is not None else None


def _as_float(value: ir.Value, before: ir.Node) -> ir.Value:
    whole = insert(before, "Cast", [value], attributes={"to": ir.DataType.FLOAT.value})
    whole.shape, whole.dtype = value.shape, ir.DataType.FLOAT
    return whole
