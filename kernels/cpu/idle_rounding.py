"""Rounding to 8 bits that serves no integer convolution any more."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tintype.kernels.base import GraphPass, Shapes, constant_of, only_reader, producer
from tintype.kernels.portable.plain_float import FloatActivations


class IdleRounding(GraphPass):
    """QuantizeLinear and the DequantizeLinear that reads it, left out where no integer convolution is on either side,
    or where one has a ReLU behind it whose output is rounded too: that rounding is then the convolution's own.

    They are there for convolutions in int8; where another kernel took those, they only cost two passes and 8 bits.
    """

    name = "idle_rounding"
    targets = ("cpu",)
    exactness = "nearer to the model that was quantized"

    def apply(self, model: ir.Model) -> int:
        shapes, rounding = Shapes(), FloatActivations()
        found = [node for node in model.graph if rounding.matches(node, shapes) and not _serves(node)]
        for node in found:
            rounding.rewrite(node, model.graph)
        rectified = [(conv, last) for conv in model.graph if (last := _rounding_of_relu(conv)) is not None]
        for conv, last in rectified:
            last.replace_input_with(0, conv.outputs[0])
        return len(found) + len(rectified)


def _rounding_of_relu(conv: ir.Node) -> ir.Node | None:
    """The QuantizeLinear of what a ReLU makes of an integer convolution's rounded output, and nobody else wants: it is
    0 below 0 by itself, as its zero point is the least byte."""
    if not _is_integer(conv):
        return None
    value = conv.outputs[0]
    for operator in ("QuantizeLinear", "DequantizeLinear", "Relu"):
        reader = only_reader(value, operator)
        if reader is None:
            return None
        value = reader.outputs[0]
    last = only_reader(value, "QuantizeLinear")
    zero = constant_of(last.inputs[2]) if last is not None and len(last.inputs) > 2 else None
    return None if zero is None or zero.dtype != np.uint8 or zero.any() else last


def _serves(dequantize: ir.Node) -> bool:
    """Whether an integer convolution makes what is rounded here, or reads it."""
    quantize = producer(dequantize.inputs[0], "QuantizeLinear")
    source = quantize.inputs[0] if quantize is not None else None
    made_by = producer(source, "Conv")
    readers = [use.node for use in dequantize.outputs[0].uses()]
    return (made_by is not None and _is_integer(made_by)) or any(map(_is_integer, readers))


def _is_integer(node: ir.Node) -> bool:
    """Whether ONNX Runtime makes a QLinearConv of a node: stored input, stored weight, rounded output."""
    stored = all(producer(value, "DequantizeLinear") is not None for value in node.inputs[:2])
    return node.op_type == "Conv" and stored and only_reader(node.outputs[0], "QuantizeLinear") is not None
