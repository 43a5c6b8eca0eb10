"""Nearest 2x upsampling and the 3x3 convolution after it, both at the low resolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import Kernel, Shapes, add_constant, constant_of, insert, only_reader, producer, replace
from tintype.kernels.cpu.product_conv import UPSAMPLED, PlainConv, ProductWriter, float_constant, plain_conv

# One side of a phase's weights: which of the three taps fall on the same low-resolution pixel.
_TAPS = (np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))


class UpsampleConv(Kernel):
    """What the two kernels here share: Resize (nearest, twice the size), perhaps as uint8, then a 3x3 convolution."""

    targets = ("cpu",)
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        return upsampled(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = upsampled(node, Shapes())
        return (node,) if found is None else (found[1], node)

    @staticmethod
    def reference(x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
        """x (batch, inputs, height, width), weight (outputs, inputs, 3, 3) -> twice the size; zeros around it."""
        return UPSAMPLED.reference(x.astype(np.float64), weight.astype(np.float64))


class UpsampleConvAsProducts(UpsampleConv):
    """Nine products a low-resolution pixel for its four output pixels: 4 times fewer, and no larger weights.

    Derived here in the manner of Winograd: see `product_conv.UPSAMPLED`.
    """

    name = "upsample_products"
    exactness = "the same sums in another order; fp32 error of some 1e-6 deviations"

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, resize = _demand(node)
        source = _low_resolution(conv, resize, node)
        replace(node.outputs[0], ProductWriter(UPSAMPLED, conv, source, graph).write())


class UpsampleConvAsPhases(UpsampleConv):
    """Four 2x2 convolutions at the low resolution, interleaved by DepthToSpace: 2.25 times fewer products."""

    name = "upsample_phases"
    exactness = "the same sums in another order; fp32 error of some 1e-6 deviations"

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, resize = _demand(node)
        source = _low_resolution(conv, resize, node)
        weight = conv.node.inputs[1]
        if weight is None:
            raise ValueError(f"{node.name} has no weight")
        inputs = [add_constant(graph, conv.bias, f"{weight.name}_bias")] if conv.bias is not None else []
        phases = []
        for index, kernel in enumerate(phase_weights(float_constant(weight))):
            row, column = divmod(index, 2)
            value = add_constant(graph, kernel, f"{weight.name}_phase_{index}")
            attributes = {"kernel_shape": [2, 2], "pads": [1 - row, 1 - column, row, column]}
            phases.append(insert(node, "Conv", [source, value, *inputs], attributes=attributes))
        joined = insert(node, "Concat", phases, attributes={"axis": 1})
        spread = insert(node, "DepthToSpace", [joined], attributes={"blocksize": 2, "mode": "DCR"})
        replace(node.outputs[0], spread)


def phase_weights(weight: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """(outputs, inputs, 3, 3) -> four of (outputs, inputs, 2, 2), for output pixels (0,0), (0,1), (1,0), (1,1)."""
    double = weight.astype(np.float64)
    return [
        np.einsum("ia,kcab,jb->kcij", _TAPS[row], double, _TAPS[column]).astype(np.float32)
        for row in (0, 1)
        for column in (0, 1)
    ]


def upsampled(node: ir.Node, shapes: Shapes) -> tuple[PlainConv, ir.Node] | None:
    """A 3x3 convolution and the Resize before it that nobody else reads."""
    conv = plain_conv(node, shapes)
    if conv is None:
        return None
    below, reader = conv.source, "Conv"
    for operator in ("DequantizeLinear", "QuantizeLinear"):  # a static int8 convolution quantizes what is upsampled
        made_by = producer(below, operator)
        if made_by is not None and made_by.inputs[0] is not None and only_reader(below, reader) is not None:
            below, reader = made_by.inputs[0], operator
    resize = producer(below, "Resize")
    if resize is None or only_reader(below, reader) is None or not _doubles(resize, shapes):
        return None
    return conv, resize


def _doubles(resize: ir.Node, shapes: Shapes) -> bool:
    """Whether a Resize repeats every pixel twice along both sides."""
    get = resize.attributes
    if get.get_string("mode", "nearest") != "nearest":
        return False
    modes = (
        get.get_string("coordinate_transformation_mode", "half_pixel"),
        get.get_string("nearest_mode", "round_prefer_floor"),
    )
    if modes not in (
        ("asymmetric", "floor"),
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
    ):
        return False
    small, large = shapes.of(resize.inputs[0]), shapes.of(resize.outputs[0])
    if small is None or large is None or len(small) != 4 or not all(isinstance(dim, int) for dim in (*small, *large)):
        return False
    return large == (small[0], small[1], 2 * int(str(small[2])), 2 * int(str(small[3])))


def _demand(node: ir.Node) -> tuple[PlainConv, ir.Node]:
    found = upsampled(node, Shapes())
    if found is None:
        raise ValueError(f"{node.name} is no convolution of an upsampled image")
    return found


def _low_resolution(conv: PlainConv, resize: ir.Node, node: ir.Node) -> ir.Value:
    """What Resize reads, quantized and dequantized as the convolution's input is."""
    source = resize.inputs[0]
    dequantize = producer(conv.source, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize is not None else None
    if source is None:
        raise ValueError(f"{resize.name} reads nothing")
    if dequantize is None or quantize is None:
        return source
    small = insert(node, "QuantizeLinear", [source, *quantize.inputs[1:]], attributes=dict(quantize.attributes))
    small.shape, small.dtype = source.shape, ir.DataType.UINT8
    return insert(node, "DequantizeLinear", [small, *dequantize.inputs[1:]], like=source)


class UpsampleConvAsInt8Phases(UpsampleConv):
    """The phases of a static int8 convolution, in int8 too: the sums of its weights are rounded anew, by channel."""

    name = "upsample_phases_int8"
    exactness = "weights of a phase rounded to 8 bits; about 0.3 % of the output's deviation"
    lossy = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        if upsampled(node, shapes) is None or only_reader(node.outputs[0], "QuantizeLinear") is None:
            return False
        weight = producer(node.inputs[1], "DequantizeLinear")
        integers = constant_of(weight.inputs[0]) if weight is not None else None
        return integers is not None and integers.dtype in (np.int8, np.uint8) and _input_step(node) is not None

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, resize = _demand(node)
        quantize, step = only_reader(node.outputs[0], "QuantizeLinear"), _input_step(node)
        weight = node.inputs[1]
        if quantize is None or step is None or weight is None:
            raise ValueError(f"{node.name} is no static int8 convolution")
        dequantize = producer(weight, "DequantizeLinear")
        stored = constant_of(dequantize.inputs[0]) if dequantize is not None else None
        zero_point = 128 if stored is not None and stored.dtype == np.uint8 else 0
        source = _low_resolution(conv, resize, node)
        phases = []
        for index, kernel in enumerate(phase_weights(float_constant(weight))):
            row, column = divmod(index, 2)
            name = f"{weight.name}_phase_{index}"
            inputs = [source, *_integer_inputs(kernel, conv.bias, step, name, node, graph, zero_point)]
            attributes = {"kernel_shape": [2, 2], "pads": [1 - row, 1 - column, row, column]}
            phase = insert(node, "Conv", inputs, attributes=attributes)
            phases.append(insert(node, "QuantizeLinear", [phase, *quantize.inputs[1:]]))
        joined = insert(node, "Concat", phases, attributes={"axis": 1})
        spread = insert(node, "DepthToSpace", [joined], attributes={"blocksize": 2, "mode": "DCR"})
        replace(node.outputs[0], insert(node, "DequantizeLinear", [spread, *quantize.inputs[1:]]))


def _input_step(node: ir.Node) -> float | None:
    """The fixed scale, one for the tensor, that the convolution's input is quantized with."""
    dequantize = producer(node.inputs[0], "DequantizeLinear")
    scale = constant_of(dequantize.inputs[1]) if dequantize is not None else None
    return float(scale.reshape(())) if scale is not None and scale.size == 1 else None


def _integer_inputs(
    kernel: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    step: float,
    name: str,
    before: ir.Node,
    graph: ir.Graph,
    zero_point: int,
) -> list[ir.Value]:
    """Weight and bias of a phase as DequantizeLinear of 8-bit integers and of int32, one scale a channel.

    zero_point: of the weight, 0 for int8 and 128 for uint8.
    """
    scale = (np.abs(kernel).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    scale[scale == 0] = 1.0
    rounded = np.rint(kernel / scale[:, None, None, None]) + zero_point
    stored = [(rounded.astype(np.uint8 if zero_point else np.int8), scale, zero_point, "weight")]
    if bias is not None:
        bias_scale = (scale * np.float32(step)).astype(np.float32)
        limit = float(np.iinfo(np.int32).max)
        stored.append((np.clip(np.rint(bias / bias_scale), -limit, limit).astype(np.int32), bias_scale, 0, "bias"))
    values = []
    for integers, steps, zero, kind in stored:
        inputs = [
            add_constant(graph, integers, f"{name}_{kind}"),
            add_constant(graph, steps, f"{name}_{kind}_scale"),
            add_constant(graph, np.full(steps.shape, zero, integers.dtype), f"{name}_{kind}_zero_point"),
        ]
        value = insert(before, "DequantizeLinear", inputs, attributes={"axis": 0})
        value.shape, value.dtype = ir.Shape(integers.shape), ir.DataType.FLOAT
        values.append(value)
    return values
