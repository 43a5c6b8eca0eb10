"""Int8, int4 and fp16 in canonical graphs: which layers, with which scales, written as which nodes.

A linear layer becomes MatMul(x, DequantizeLinear(int8 weight, one scale a column)); its activations stay float in the
canonical graph, the target quantizes them as they come. A convolution becomes QDQ: uint8 input and output with fixed
ranges, int8 weight with one scale a channel, int32 bias, so that ONNX Runtime fuses it to QLinearConv; where its ranges
are not known, its weight alone becomes integers, as a linear layer's does. A linear layer of four bits has a scale and
a zero point for every 32 inputs of a column; a table of words beside such layers is int8, one scale a row. Weights that
stay float are stored as fp16 behind a Cast. The arithmetic of scales and rounding is here and in the engine's
`four_bits` only; `simulation` uses it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.engine import BLOCK, BlockScales, block_scales, fits_blocks, from_integers, to_integers
from tintype.export.graph_nodes import initializer, insert_before, lazy_initializer

if TYPE_CHECKING:
    import torch

SMALLEST_TABLE = 2**16  # numbers; smaller tables beside four bits gain nothing as int8
SMALLEST_HALF_BYTES = 1024  # smaller weights stay fp32: they gain nothing, and biases and norms are among them
FLOAT16_MAX = 65504.0
PIECE_NUMBERS = 2**20  # of a weight that becomes integers, at a time
WEIGHT_SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6)

KEPT_SAMPLES = 200_000  # of each activation, over all calibration calls
SEARCHED_SAMPLES = 50_000  # of those, for the range that loses least

# Always float: the first and last convolutions see pixels or latents themselves, and the time embedding steers all. The
# last of a ControlNet's that read its picture is in the middle of it.
ALWAYS_FLOAT = re.compile(
    r"(^|\.)(conv_in|(?<!cond_embedding\.)conv_out|quant_conv|post_quant_conv|time_embedding|time_emb_proj"
    r"|add_embedding)(\.|$)"
)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer that could be integers. `module` is its name in torch, `weight` its initializer in the graph."""

    kind: Literal["linear", "conv"]
    module: str
    weight: str
    parameters: int
    bits: int = 8  # of each number of its weight

    def finer(self) -> Layer | None:
        """What it becomes where it hurts: of four bits one of eight, else None, float."""
        return replace(self, bits=8) if self.bits == 4 else None


@dataclass(frozen=True, slots=True)
class Range:
    """What uint8 values stand for: low <= 0 <= high, so that zero, and with it padding, is exact."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        return float(np.float32(max(self.high - self.low, 1e-8) / 255.0))

    @property
    def zero_point(self) -> int:
        return int(np.clip(round(-self.low / self.scale), 0, 255))


@dataclass(frozen=True, slots=True)
class Scales:
    """How one layer is quantized. weight: one scale a column or channel; activations only for convolutions, or None.

    blocks: of a layer that may have four bits, else None.
    """

    weight: NDArray[np.float32]
    input: Range | None = None
    output: Range | None = None
    blocks: BlockScales | None = None


def find_layers(model: ir.Model, *, four_bits: bool = False) -> tuple[Layer, ...]:
    """Every layer of a canonical graph that may be integers, in order. four_bits: linear ones have four, where blocks
    fit their inputs."""
    found = []
    for node in model.graph:
        if node.op_type not in ("MatMul", "Conv") or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if weight is None or weight.const_value is None or len(weight.uses()) != 1:
            continue
        ending = ".weight_T" if node.op_type == "MatMul" else ".weight"
        name = str(weight.name)
        if not name.endswith(ending) or ALWAYS_FLOAT.search(name) or (node.op_type == "Conv" and _grouped(node)):
            continue
        kind: Literal["linear", "conv"] = "linear" if node.op_type == "MatMul" else "conv"
        shape = tuple(int(size) for size in weight.const_value.shape.numpy())
        bits = 4 if four_bits and kind == "linear" and fits_blocks(shape[0]) else 8
        found.append(Layer(kind, name.removesuffix(ending), name, math.prod(shape), bits))
    return tuple(found)


def stored_precision(layers: Sequence[Layer]) -> str:
    """What a graph is called with these layers as integers, all others being float16."""
    if not layers:
        return "fp16"
    return "int4" if any(layer.bits == 4 for layer in layers) else "int8"


def weight_scales(weight: torch.Tensor) -> NDArray[np.float32]:
    """One scale for each first index of a torch weight (output channel or column), nearest in mean square.

    Shrinking the range below the largest weight costs that one weight and gains resolution for all others.
    """
    import torch  # here, because fp16 is written without it

    flat = weight.detach().float().reshape(weight.shape[0], -1)
    largest = flat.abs().amax(dim=1).clamp_min(1e-12)
    best = largest / 127.0
    best_error = torch.full_like(best, torch.inf)
    for shrink in WEIGHT_SHRINKS:
        scale = largest * (shrink / 127.0)
        rounded = (flat / scale[:, None]).round_().clamp_(-127, 127).mul_(scale[:, None])
        error = rounded.sub_(flat).square_().sum(dim=1)
        better = error < best_error
        best = torch.where(better, scale, best)
        best_error = torch.where(better, error, best_error)
    return best.numpy().astype(np.float32)


def weight_scales_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """`weight_scales` without torch. rows: (channels or columns, what each multiplies)."""
    largest = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-12))
    best, best_error = largest / 127, np.full(len(rows), np.inf, np.float32)
    for shrink in WEIGHT_SHRINKS:
        scale = largest * np.float32(shrink / 127.0)
        rounded = np.clip(np.rint(rows / scale[:, None]), -127, 127) * scale[:, None]
        error = np.square(rounded - rows).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, scale, best), np.where(better, error, best_error)
    return best.astype(np.float32)


def integer_weight(weight: torch.Tensor, scales: NDArray[np.float32]) -> torch.Tensor:
    """A torch weight's int8 form, made in pieces: a float of each number of a large one is as much as four layers."""
    import torch

    whole, spread = torch.empty(weight.shape, dtype=torch.int8), _spread(scales, weight)
    rows = max(1, PIECE_NUMBERS * len(weight) // max(1, weight.numel()))
    for start in range(0, len(weight), rows):
        piece = slice(start, start + rows)
        whole[piece] = (weight[piece] / spread[piece]).round_().clamp_(-127, 127)
    return whole


def linear_scales(weight: NDArray[np.float32], layer: Layer) -> BlockScales | None:
    """Of a layer of four bits; None of any other. weight: as torch has it, (columns, what each multiplies)."""
    return block_scales(weight.T) if layer.bits == 4 else None


def block_integers(weight: torch.Tensor, scales: BlockScales) -> NDArray[np.uint8]:
    """The four-bit form of a linear layer's torch weight, (inputs, outputs)."""
    return to_integers(weight.detach().float().numpy().T, scales)


def float_blocks(integers: NDArray[np.uint8], scales: BlockScales) -> torch.Tensor:
    """What it gives back, as torch has it."""
    import torch

    return torch.from_numpy(from_integers(integers, scales)).T


def float_weight(integers: torch.Tensor, scales: NDArray[np.float32]) -> torch.Tensor:
    """What an int8 form gives back."""
    return integers.float().mul_(_spread(scales, integers))


def rounded_weight(weight: torch.Tensor, scales: NDArray[np.float32]) -> torch.Tensor:
    """A torch weight as its int8 form gives it back."""
    return float_weight(integer_weight(weight, scales), scales)


def _spread(scales: NDArray[np.float32], weight: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(scales).reshape(-1, *[1] * (weight.ndim - 1))


def best_range(samples: NDArray[np.float32], low: float, high: float) -> Range:
    """The range between low and high (both widened to hold 0) that keeps samples nearest, in mean square.

    A long thin tail is cut where its loss is smaller than what 256 finer steps gain for everything else.
    """
    low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-8:
        return Range(0.0, 1e-8)
    best = Range(low, high)
    best_error = _range_error(samples, best)
    for ends in ((1, 1), (0, 1), (1, 0), (1, 1)):  # both ends together, then each alone, then both once more
        start = best
        for shrink in np.linspace(0.3, 0.98, 18):
            tried = Range(start.low * (shrink if ends[0] else 1.0), start.high * (shrink if ends[1] else 1.0))
            error = _range_error(samples, tried)
            if error < best_error:
                best, best_error = tried, error
    return best


def quantize_graph(model: ir.Model, layers: Iterable[Layer], scales: Mapping[str, Scales]) -> None:
    """Make `layers` integers, in place; `scales` by module. With layers of four bits, tables of words become int8."""
    wanted = {layer.weight: layer for layer in layers}
    if any(layer.bits == 4 for layer in wanted.values()):
        _quantize_tables(model.graph)
    for node in list(model.graph):
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        layer = wanted.get(str(weight.name)) if weight is not None and node.op_type in ("MatMul", "Conv") else None
        if layer is None:
            continue
        if layer.bits == 4:
            _quantize_blocks(model.graph, node, scales[layer.module])
        elif layer.kind == "linear":
            _quantize_linear(model.graph, node, scales[layer.module])
        else:
            _quantize_conv(model.graph, node, scales[layer.module])


def halve_weights(model: ir.Model) -> None:
    """Store float32 weights of some size as fp16, in place; values that fp16 can't hold stay as they are."""
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes < SMALLEST_HALF_BYTES:
            continue
        if len(tensor.shape) < 2 or str(name).endswith("_scale"):
            continue
        if float(np.abs(tensor.numpy()).max()) > FLOAT16_MAX:
            continue
        half = _half(model.graph, f"{name}_fp16", tensor)
        users = [(use.node, use.idx) for use in value.uses()]
        if len(users) == 1 and users[0][0].op_type == "Gather" and users[0][1] == 0:
            _cast_after_gather(model.graph, users[0][0], half)
        else:
            first = next(node for node in model.graph if any(node is user for user, _ in users))
            cast = insert_before(model.graph, first, "Cast", [half], {"to": int(ir.DataType.FLOAT)}, value)
            value.replace_all_uses_with(cast)
        del model.graph.initializers[name]


def _quantize_linear(graph: ir.Graph, node: ir.Node, scales: Scales) -> None:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    name = str(weight.name)
    quantized = _integers(graph, f"{name}_int8", weight.const_value, scales.weight[None, :])
    scale = initializer(graph, f"{name}_scale", scales.weight)
    node.replace_input_with(1, insert_before(graph, node, "DequantizeLinear", [quantized, scale], {"axis": 1}, weight))
    del graph.initializers[name]


def _quantize_blocks(graph: ir.Graph, node: ir.Node, scales: Scales) -> None:
    weight, blocks = node.inputs[1], scales.blocks
    assert weight is not None
    assert weight.const_value is not None
    assert blocks is not None
    name = str(weight.name)

    def rounded(array: NDArray[np.float32]) -> NDArray[Any]:
        return to_integers(array, blocks).astype(ml_dtypes.uint4)

    integers = lazy_initializer(graph, f"{name}_uint4", weight.const_value, ir.DataType.UINT4, rounded)
    half = initializer(graph, f"{name}_scale", blocks.scale)
    scale = insert_before(graph, node, "Cast", [half], {"to": int(ir.DataType.FLOAT)}, half)
    zero = initializer(graph, f"{name}_zero_point", blocks.zero_point.astype(ml_dtypes.uint4))
    inputs, along = [integers, scale, zero], {"axis": 0, "block_size": BLOCK}
    node.replace_input_with(1, insert_before(graph, node, "DequantizeLinear", inputs, along, weight))
    del graph.initializers[name]


def _quantize_tables(graph: ir.Graph) -> None:
    """Tables that rows are picked of: one scale a row."""
    for node in list(graph):
        table = node.inputs[0] if node.op_type == "Gather" and node.attributes.get_int("axis", 0) == 0 else None
        tensor = table.const_value if table is not None else None
        if table is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        if tensor.size < SMALLEST_TABLE or len(table.uses()) != 1:
            continue
        scales, name = np.abs(tensor.numpy()).max(axis=1), str(table.name)
        scales = np.maximum(scales / np.float32(127.0), np.float32(1e-12))
        integers = _integers(graph, f"{name}_int8", tensor, scales[:, None])
        scale = initializer(graph, f"{name}_scale", scales)
        node.replace_input_with(
            0, insert_before(graph, node, "DequantizeLinear", [integers, scale], {"axis": 0}, table)
        )
        del graph.initializers[name]


def _quantize_conv(graph: ir.Graph, node: ir.Node, scales: Scales) -> None:
    image, weight = node.inputs[0], node.inputs[1]
    assert image is not None
    assert weight is not None
    assert weight.const_value is not None
    name = str(weight.name).removesuffix(".weight")
    scale = scales.weight.reshape(-1, *[1] * (len(weight.const_value.shape) - 1))
    integers = _integers(graph, f"{name}.weight_int8", weight.const_value, scale)
    weight_scale = initializer(graph, f"{name}.weight_scale", scales.weight)
    dequantized = insert_before(graph, node, "DequantizeLinear", [integers, weight_scale], {"axis": 0}, weight)
    node.replace_input_with(1, dequantized)
    del graph.initializers[str(weight.name)]
    if scales.input is None or scales.output is None:
        return
    node.replace_input_with(0, _fixed_range(graph, node, image, f"{name}.input", scales.input))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        node.replace_input_with(2, _integer_bias(graph, node, node.inputs[2], name, scales))
    _fix_output(graph, node, f"{name}.output", scales.output)


def _integer_bias(graph: ir.Graph, node: ir.Node, bias: ir.Value, name: str, scales: Scales) -> ir.Value:
    assert bias.const_value is not None
    assert scales.input is not None
    scale = (np.float32(scales.input.scale) * scales.weight).astype(np.float32)
    limit = 2**31 - 1
    rounded = np.clip(np.rint(bias.const_value.numpy().astype(np.float64) / scale), -limit, limit).astype(np.int32)
    integers = initializer(graph, f"{name}.bias_int32", rounded)
    bias_scale = initializer(graph, f"{name}.bias_scale", scale)
    dequantized = insert_before(graph, node, "DequantizeLinear", [integers, bias_scale], {"axis": 0}, bias)
    if len(bias.uses()) == 1:
        del graph.initializers[str(bias.name)]
    return dequantized


def _fixed_range(graph: ir.Graph, before: ir.Node, value: ir.Value, name: str, span: Range) -> ir.Value:
    """value -> QuantizeLinear -> DequantizeLinear, in front of `before`."""
    scale = initializer(graph, f"{name}_scale", np.array(span.scale, dtype=np.float32))
    zero = initializer(graph, f"{name}_zero_point", np.array(span.zero_point, dtype=np.uint8))
    integers = insert_before(graph, before, "QuantizeLinear", [value, scale, zero], {}, None)
    integers.shape, integers.type = value.shape, ir.TensorType(ir.DataType.UINT8)
    return insert_before(graph, before, "DequantizeLinear", [integers, scale, zero], {}, value)


def _fix_output(graph: ir.Graph, node: ir.Node, name: str, span: Range) -> None:
    output = node.outputs[0]
    users = [(use.node, use.idx) for use in output.uses()]
    after = next(other for other in graph if any(other is user for user, _ in users))
    fixed = _fixed_range(graph, after, output, name, span)
    for user, index in users:
        user.replace_input_with(index, fixed)


def _cast_after_gather(graph: ir.Graph, gather: ir.Node, half: ir.Value) -> None:
    """Gather from an fp16 table and cast the rows that were taken, not the table."""
    output = gather.outputs[0]
    users = [(use.node, use.idx) for use in output.uses()]
    gather.replace_input_with(0, half)
    after = next(node for node in graph if any(node is user for user, _ in users))
    cast = insert_before(graph, after, "Cast", [output], {"to": int(ir.DataType.FLOAT)}, output)
    output.type = ir.TensorType(ir.DataType.FLOAT16)
    for user, index in users:
        user.replace_input_with(index, cast)


def _half(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """An fp16 initializer."""
    return lazy_initializer(graph, name, tensor, ir.DataType.FLOAT16, lambda array: array.astype(np.float16))


def _integers(graph: ir.Graph, name: str, tensor: ir.TensorProtocol, scale: NDArray[np.float32]) -> ir.Value:
    """An int8 initializer."""

    def rounded(array: NDArray[np.float32]) -> NDArray[np.int8]:
        return np.clip(np.rint(array / scale), -127, 127).astype(np.int8)

    return lazy_initializer(graph, name, tensor, ir.DataType.INT8, rounded)


def _range_error(samples: NDArray[np.float32], span: Range) -> float:
    scale, zero = span.scale, span.zero_point
    rounded = (np.clip(np.rint(samples / scale) + zero, 0, 255) - zero) * scale
    return float(np.mean(np.square(rounded - samples)))


def _grouped(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    return group is not None and group.as_int() != 1
