"""Which operators are local: each row of what they give depends on a few rows of the feature map that they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from tintype.kernels.base import constant_of

GROUP_NORM = "GroupNormalization"
_BY_ELEMENT = frozenset(
    {
        "Abs",
        "Add",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Div",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Log",
        "Max",
        "Min",
        "Mish",
        "Mul",
        "Neg",
        "PRelu",
        "Pow",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Sub",
        "Swish",
        "Tanh",
    }
)
_REPEATS = (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil"))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows given for one row read, and how many of them beside a cut have not seen all their neighbours."""

    scale: int | Fraction = 1  # a whole number, or one over a whole number
    margin: int = 0


def fixed_values(graph: ir.Graph) -> set[ir.Value]:
    """Weights, and what is made of weights alone."""
    fixed = {value for value in graph.initializers.values() if not value.is_graph_input()}
    for node in graph:
        if node.op_type == "Constant" or (
            node.inputs and all(value is None or value in fixed for value in node.inputs)
        ):
            fixed.update(node.outputs)
    return fixed


def is_map(value: ir.Value) -> bool:
    """Whether a value has rows: (batch, channels, height, width), all numbers."""
    return value.dtype is not None and value.shape is not None and len(value.shape) == 4 and value.shape.is_static()


def reach(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """How a node's rows follow from those of the maps that it reads; None where it isn't local.

    A GroupNormalization counts as local: it is, once its statistics are known.
    """
    kind = _KINDS.get(node.op_type, _by_element if node.op_type in _BY_ELEMENT else None)
    maps = [value for value in node.inputs if value is not None and value not in fixed]
    if kind is None or node.domain != "" or len(node.outputs) != 1:
        return None
    if not maps or not all(map(is_map, (*maps, node.outputs[0]))):
        return None
    return kind(node, fixed)


def _by_element(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """All operands have as many rows, or are fixed and alike for every row."""
    maps = [value for value in node.inputs if value is not None and value not in fixed]
    beside = [value for value in node.inputs if value is not None and value in fixed]
    heights = {value.shape[2] for value in (*maps, *node.outputs) if value.shape is not None}
    return Rows() if len(heights) == 1 and all(map(_without_rows, beside)) else None


def _without_rows(value: ir.Value) -> bool:
    return value.shape is not None and (len(value.shape) < 2 or value.shape[-2] == 1)


def _quantized(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """By tensor or by channel, with fixed scale and zero point."""
    by_channel = node.attributes.get_int("axis", 1) == 1 and node.attributes.get_int("block_size", 0) == 0
    beside = node.inputs[1:]
    plain = all(value is None or (value.shape is not None and len(value.shape) <= 1) for value in beside)
    return Rows() if by_channel and plain and all(value is None or value in fixed for value in beside) else None


def _norm(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """Of float32, with fixed scale and bias."""
    source, *beside = node.inputs
    plain = source is not None and source.dtype == ir.DataType.FLOAT and source not in fixed
    return Rows() if plain and all(value in fixed for value in beside) else None


def _conv(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """As many rows as before, or with stride n every n-th, with fixed weights."""
    weight = node.inputs[1]
    if node.inputs[0] in fixed or any(value is not None and value not in fixed for value in node.inputs[1:]):
        return None
    if weight is None or weight.shape is None or not isinstance(weight.shape[2], int):
        return None
    get = node.attributes
    pads, strides, dilations = (
        tuple(get[name].as_ints()) if name in get else default
        for name, default in (("pads", (0, 0, 0, 0)), ("strides", (1, 1)), ("dilations", (1, 1)))
    )
    if get.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    extent, stride, above, below = (weight.shape[2] - 1) * dilations[0], strides[0], pads[0], pads[2]
    if not 0 <= above + below - extent + stride - 1 < stride:
        return None  # it gives more rows, or fewer
    beyond = max(0, extent - above - (stride - 1))  # what the last row reads below its own
    margin = max(-(-above // stride), -(-beyond // stride))
    return Rows(Fraction(1, stride) if stride > 1 else 1, margin)


def _resize(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    """Nearest, by a fixed whole number, given as scales."""
    get = node.attributes
    modes = (
        get.get_string("coordinate_transformation_mode", "half_pixel"),
        get.get_string("nearest_mode", "round_prefer_floor"),
    )
    scales = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if get.get_string("mode", "nearest") != "nearest" or modes not in _REPEATS or "axes" in get:
        return None
    if scales is None or scales.shape != (4,) or scales[2] < 1 or scales[2] != int(scales[2]):
        return None
    return Rows(int(scales[2]))


def _concat(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    return _by_element(node, fixed) if node.attributes.get_int("axis", 0) in (1, -3) else None


def _depth_to_space(node: ir.Node, fixed: set[ir.Value]) -> Rows | None:
    return Rows(node.attributes.get_int("blocksize", 1))


_KINDS: dict[str, Callable[[ir.Node, set[ir.Value]], Rows | None]] = {
    GROUP_NORM: _norm,
    "Concat": _concat,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _quantized,
    "QuantizeLinear": _quantized,
    "Resize": _resize,
}
