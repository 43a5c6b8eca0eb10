"""Convolutions with 8-bit weights and a rounded input as one node of our own, whose output is not rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.kernels.base import OWN, Kernel, Shapes, add_constant, constant_of, insert, only_reader, producer, replace
from tintype.kernels.cpu.product_conv import float_constant, is_fixed
from tintype.kernels.cpu.upsample_conv import phase_weights, upsampled
from tintype.kernels.native.integer_linear import MOST_INPUTS, packed_integers
from tintype.kernels.native.library import INTEGERS
from tintype.kernels.native.linear import COLUMNS
from tintype.kernels.native.sums import Sums


class NativeIntegerConv(Kernel):
    """Conv between QuantizeLinear and DequantizeLinear, and what is added to it, as IntegerConv (src/integer_conv.h).

    The same sums of integers as ONNX Runtime's, which rounds them to 8 bits again and turns every picture twice.
    """

    name = "native_integer_conv"
    targets = ("cpu",)
    needs: ClassVar[Mapping[str, str]] = {"cpu": INTEGERS}
    exactness = "the same sums of integers, not rounded again: nearer to the model that was quantized"
    lossy = True  # as the graph is: it is held to that gate, since what isn't rounded twice differs by that rounding
    measured = True

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """Not grouped or dilated, as far padded on each side, of a known size; uint8 inputs, int8 weights around 0."""
        return _conv(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        conv = _conv(node, Shapes())
        return (node,) if conv is None else (node, *conv.behind)

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv = _conv(node, Shapes())
        if conv is None:
            raise ValueError(f"{node.name} is no convolution of 8-bit integers of a known size")
        scales = np.broadcast_to(conv.weight_scale, (len(conv.weights),))
        self._insert(node, graph, conv, conv.source, conv.weights[None], scales[None])

    def _insert(
        self, node: ir.Node, graph: ir.Graph, conv: _Conv, source: ir.Value, filters: NDArray[np.int8],
        scales: NDArray[np.float32], **attributes: int,
    ) -> None:  # fmt: skip
        """filters (kinds, outputs, inputs, rows, columns), scales (kinds, outputs): four if upsampled, or one."""
        name, step = f"{conv.name}_{self.name}", np.float32(conv.step)
        packed = graph.initializers.get(name)  # of another layer with the same weight
        inputs = [
            source,
            packed or add_constant(graph, panels_of([packed_filters(each) for each in filters]), name),
            add_constant(graph, conv.bias, f"{name}_bias"),
            add_constant(graph, panels_of([by_panel(step * each) for each in scales]), f"{name}_scale"),
            add_constant(graph, panels_of([by_panel(totals_of(each)) for each in filters]), f"{name}_totals"),
            conv.sums.shift,
            conv.sums.added,
        ]
        while inputs[-1] is None:
            inputs.pop()
        last = conv.behind[-1] if conv.behind else node
        attributes = {"zero": conv.zero, "stride": conv.stride, "padding": conv.padding, **attributes}
        output = last.outputs[0]
        made = insert(
            last, "IntegerConv", inputs, domain=OWN, attributes={"scale": conv.step, **attributes}, like=output
        )
        replace(output, made)

    @staticmethod
    def reference(
        x: NDArray[Any], weights: NDArray[Any], scales: NDArray[Any], bias: NDArray[Any], step: float, zero: int,
        stride: int = 1, padding: int = 0,
    ) -> NDArray[Any]:  # fmt: skip
        """x (batch, inputs, height, width), weights (outputs, inputs, rows, columns) around 0, scales and bias
        (outputs,): of the product; step and zero: how x is rounded to uint8."""
        rounded = np.clip(np.rint(x * (np.float32(1) / np.float32(step))) + zero, 0, 255) - zero
        padded = np.pad(rounded.astype(np.float64), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, weights.shape[2:], axis=(2, 3))
        seen = windows[:, :, ::stride, ::stride]
        made = np.einsum("bihwrc,oirc->bohw", seen, weights.astype(np.float64), optimize=True)
        return np.asarray(made * scales.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1))


class NativeIntegerUpsample(NativeIntegerConv):
    """The same of a picture that nearest made twice as large: its four kinds of pixels by 2x2 filters on the small one.

    As `upsample_phases_int8`, whose weights it has; pixels are written where they belong, which took DepthToSpace.
    """

    name = "native_integer_upsample"
    exactness = "weights of a phase rounded to 8 bits; about 0.3 % of the output's deviation"

    def matches(self, node: ir.Node, shapes: Shapes) -> bool:
        """3x3, stride 1, padding 1, as above, behind a Resize that nobody else reads."""
        return _conv(node, shapes) is not None and upsampled(node, shapes) is not None

    def cluster(self, node: ir.Node) -> tuple[ir.Node, ...]:
        found = upsampled(node, Shapes())
        return (node,) if found is None else (found[1], *super().cluster(node))

    def rewrite(self, node: ir.Node, graph: ir.Graph) -> None:
        conv, found = _conv(node, Shapes()), upsampled(node, Shapes())
        source = found[1].inputs[0] if found is not None else None
        if conv is None or source is None:
            raise ValueError(f"{node.name} is no convolution of 8-bit integers of an upsampled picture")
        weights = conv.weights * np.broadcast_to(conv.weight_scale, (len(conv.weights),))[:, None, None, None]
        filters, scales = zip(*map(rounded_filters, phase_weights(weights.astype(np.float32))), strict=True)
        source = _unrectified(source, conv.zero)
        self._insert(node, graph, conv, source, np.stack(filters), np.stack(scales), upsampled=1)

    @staticmethod
    def reference(  # type: ignore[override]
        x: NDArray[Any], filters: NDArray[Any], scales: NDArray[Any], bias: NDArray[Any], step: float, zero: int
    ) -> NDArray[Any]:
        """x (batch, inputs, height, width) -> (batch, outputs, 2 height, 2 width).

        filters (4, outputs, inputs, 2, 2), scales (4, outputs): for the pixels (0,0), (0,1), (1,0), (1,1) of each.
        """
        batch, _, height, width = x.shape
        made = np.empty((batch, filters.shape[1], 2 * height, 2 * width))
        for index, (weights, scale) in enumerate(zip(filters, scales, strict=True)):
            row, column = divmod(index, 2)
            whole = NativeIntegerConv.reference(x, weights, scale, bias, step, zero, padding=1)
            made[:, :, row::2, column::2] = whole[:, :, row : row + height, column : column + width]
        return made


def rounded_filters(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(outputs, ...) to 8 bits, and a scale for each output."""
    scale = (np.abs(weights).reshape(len(weights), -1).max(axis=1) / 127).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.rint(weights / scale[:, None, None, None]).astype(np.int8), scale


def panels_of(kinds: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Some of (panels, ...) -> (panels * kinds, ...), the kinds of a panel side by side."""
    return np.stack(kinds, axis=1).reshape(-1, *kinds[0].shape[1:])


def totals_of(filters: NDArray[np.int8]) -> NDArray[np.int32]:
    """(outputs, inputs, rows, columns) -> sums (outputs,)."""
    return np.asarray(filters.sum(axis=(1, 2, 3), dtype=np.int32))


def packed_filters(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """(outputs, inputs, rows, columns) -> (panels, rows, columns, inputs / 4, 32, 4), zeros beyond the last ones."""
    outputs, inputs, rows, columns = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -inputs % 4), (0, 0), (0, 0)))
    packed = packed_integers(padded.transpose(2, 3, 1, 0).reshape(-1, outputs))
    return packed.reshape(len(packed), rows, columns, -1, COLUMNS, 4)


def by_panel(numbers: NDArray[Any]) -> NDArray[Any]:
    """(outputs,) -> (panels, 32), zeros beyond the last."""
    return np.pad(numbers, (0, -len(numbers) % COLUMNS)).reshape(-1, COLUMNS)


@dataclass(frozen=True, slots=True)
class _Conv:
    """A convolution of 8-bit integers: how its input is rounded, and what is done to its output."""

    source: ir.Value  # before it is rounded
    step: float
    zero: int
    name: str
    weights: NDArray[np.int8]  # (outputs, inputs, rows, columns)
    weight_scale: NDArray[np.float32]
    bias: NDArray[np.float32]  # (outputs,)
    stride: int
    padding: int
    behind: tuple[ir.Node, ...]  # the rounding of its output that is left out, and what is added
    sums: Sums


def _conv(node: ir.Node, shapes: Shapes) -> _Conv | None:
    if node.op_type != "Conv" or node.domain != "" or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    given, weight = producer(node.inputs[0], "DequantizeLinear"), producer(node.inputs[1], "DequantizeLinear")
    quantize = producer(given.inputs[0], "QuantizeLinear") if given is not None else None
    if given is None or weight is None or quantize is None or list(quantize.inputs[1:]) != list(given.inputs[1:]):
        return None
    source, size = quantize.inputs[0], shapes.of(quantize.inputs[0])
    step, zero = (constant_of(value) for value in (*quantize.inputs[1:], None, None)[:2])
    if source is None or size is None or len(size) != 4 or not all(isinstance(dim, int) and dim > 0 for dim in size):
        return None
    if step is None or zero is None or step.size != 1 or zero.dtype != np.uint8 or source.dtype != ir.DataType.FLOAT:
        return None
    stride, padding = _sides(node)
    integers, scale = constant_of(weight.inputs[0]), constant_of(weight.inputs[1])
    around = constant_of(weight.inputs[2]) if len(weight.inputs) > 2 else None
    if stride == 0 or integers is None or scale is None or integers.dtype != np.int8 or integers.ndim != 4:
        return None
    by_output = scale.size == 1 or (scale.shape == integers.shape[:1] and weight.attributes.get_int("axis", 1) == 0)
    if not by_output or (around is not None and bool(around.any())):
        return None
    if integers.shape[1] != size[1] or integers[0].size + 3 * integers[0, 0].size > MOST_INPUTS:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_fixed(bias):
        return None
    numbers = np.zeros(len(integers), np.float32) if bias is None else float_constant(bias)
    rounding, output = _rounding_behind(node.outputs[0])
    sums = Sums.behind(output)
    name = weight.inputs[0].name if weight.inputs[0] is not None else None
    source = _unrectified(source, zero.item())
    return _Conv(
        source, float(step.item()), int(zero.item()), name or "weight", integers, scale.reshape(-1), numbers, stride,
        padding, (*rounding, *sums.nodes), sums,
    )  # fmt: skip


def _unrectified(source: ir.Value, zero: int) -> ir.Value:
    """What a ReLU reads whose output is rounded: where 0 is the least byte, what is below becomes 0 by itself."""
    relu = producer(source, "Relu")
    return source if relu is None or relu.inputs[0] is None or zero else relu.inputs[0]


def _sides(node: ir.Node) -> tuple[int, int]:
    """Stride and padding; a stride of 0 where there is not one of each, or where the filter is in groups or dilated."""
    get = node.attributes
    pads, strides, dilations = (
        set(get[name].as_ints()) if name in get else {default}
        for name, default in (("pads", 0), ("strides", 1), ("dilations", 1))
    )
    if len(pads) > 1 or len(strides) > 1 or dilations != {1} or get.get_int("group", 1) != 1:
        return 0, 0
    return strides.pop(), pads.pop()


def _rounding_behind(output: ir.Value) -> tuple[tuple[ir.Node, ...], ir.Value]:
    """The rounding that alone reads an output, where no other convolution wants it so, and what comes of it."""
    quantize = only_reader(output, "QuantizeLinear")
    given = only_reader(quantize.outputs[0], "DequantizeLinear") if quantize is not None else None
    if quantize is None or given is None or any(use.node.op_type == "Conv" for use in given.outputs[0].uses()):
        return (), output
    return (quantize, given), given.outputs[0]
