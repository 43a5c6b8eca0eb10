"""The shape of what an operator gives, by the shapes of what it takes: the operators that rewrites are sure of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Shape = tuple[int, ...]
Array = NDArray[Any]


class UnknownOperatorError(ValueError):
    """An operator whose meaning isn't known here."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A value at one choice of sizes. array: where it is made of shapes and constants alone, and small."""

    shape: Shape
    dtype: np.dtype[Any]
    array: Array | None = None

    @classmethod
    def of(cls, array: Array) -> Seen:
        return cls(array.shape, array.dtype, array)


def numbers(value: Seen | None, what: str) -> list[int]:
    """Sizes or axes that a node takes as an input."""
    if value is None or value.array is None:
        raise ValueError(f"its {what} are not fixed by the sizes of the inputs")
    return [int(number) for number in value.array.reshape(-1)]


def axes_of(node: ir.Node, inputs: Sequence[Seen | None]) -> list[int] | None:
    """Axes as newer sets give them, an input, or older ones, an attribute."""
    if len(inputs) > 1 and inputs[1] is not None:
        return numbers(inputs[1], "axes")
    attribute = node.attributes.get("axes")
    return None if attribute is None else list(attribute.as_ints())


def _first(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    return [_shape(inputs[0])] * len(node.outputs)


def _shape(value: Seen | None) -> Shape:
    if value is None:
        raise ValueError("it lacks an input")
    return value.shape


def _broadcast(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    return [np.broadcast_shapes(*(value.shape for value in inputs if value is not None))]


def _conv(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    image, weight = _shape(inputs[0]), _shape(inputs[1])
    spatial = len(weight) - 2
    get = node.attributes
    if get.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise UnknownOperatorError("Conv with auto_pad")
    pads = list(get.get_ints("pads", [0] * 2 * spatial))
    strides, dilations = (list(get.get_ints(name, [1] * spatial)) for name in ("strides", "dilations"))
    sizes = [
        (image[2 + i] + pads[i] + pads[i + spatial] - dilations[i] * (weight[2 + i] - 1) - 1) // strides[i] + 1
        for i in range(spatial)
    ]
    if image[1] != weight[1] * get.get_int("group", 1) or min(sizes) < 1:
        raise ValueError(f"{image} and {weight} don't go together")
    return [(image[0], weight[0], *sizes)]


def _matmul(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    a, b = _shape(inputs[0]), _shape(inputs[1])
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ValueError(f"{a} and {b} don't go together")
    return [(*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])]


def _gemm(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    a, b = _shape(inputs[0]), _shape(inputs[1])
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    if a[1] != b[0]:
        raise ValueError(f"{a} and {b} don't go together")
    return [(a[0], b[1])]


def _reshape(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source, wanted = _shape(inputs[0]), numbers(inputs[1], "sizes")
    if not node.attributes.get_int("allowzero", 0):
        wanted = [source[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(source) // rest
    if math.prod(wanted) != math.prod(source):
        raise ValueError(f"{source} can't become {wanted}")
    return [tuple(wanted)]


def _transpose(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source = _shape(inputs[0])
    return [tuple(source[axis] for axis in node.attributes.get_ints("perm", range(len(source))[::-1]))]


def _concat(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    shapes = [_shape(value) for value in inputs]
    axis = node.attributes.get_int("axis", 0) % len(shapes[0])
    return [(*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :])]


def cuts_of(inputs: list[Seen | None]) -> list[tuple[int, slice]]:
    rank = len(_shape(inputs[0]))
    starts, ends = numbers(inputs[1], "starts"), numbers(inputs[2], "ends")
    axes = numbers(inputs[3], "axes") if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
    steps = numbers(inputs[4], "steps") if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    cuts = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        last: int | None = end
        if step < 0 and end < -(2**31):  # before the first element
            last = None
        cuts.append((axis % rank, slice(start, last, step)))
    return cuts


def _slice(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    shape = list(_shape(inputs[0]))
    for axis, cut in cuts_of(inputs):
        shape[axis] = len(range(*cut.indices(shape[axis])))
    return [tuple(shape)]


def _unsqueeze(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    shape, axes = list(_shape(inputs[0])), axes_of(node, inputs) or []
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _squeeze(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    shape, axes = _shape(inputs[0]), axes_of(node, inputs)
    if axes is None:
        return [tuple(size for size in shape if size != 1)]
    going = {axis % len(shape) for axis in axes}
    return [tuple(size for axis, size in enumerate(shape) if axis not in going)]


def _expand(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    return [np.broadcast_shapes(_shape(inputs[0]), tuple(numbers(inputs[1], "sizes")))]


def _resize(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source = _shape(inputs[0])
    if len(inputs) > 3 and inputs[3] is not None:
        return [tuple(numbers(inputs[3], "sizes"))]
    scales = inputs[2]
    if scales is None or scales.array is None or len(scales.array) != len(source):
        raise ValueError("its scales are not fixed")
    return [tuple(int(size * float(scale)) for size, scale in zip(source, scales.array, strict=True))]


def _pad(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source, pads = _shape(inputs[0]), numbers(inputs[1], "pads")
    if (len(inputs) > 3 and inputs[3] is not None) or len(pads) != 2 * len(source):
        raise UnknownOperatorError("Pad by axes")
    return [tuple(size + pads[i] + pads[i + len(source)] for i, size in enumerate(source))]


def _gather(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source = _shape(inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(source)
    return [(*source[:axis], *_shape(inputs[1]), *source[axis + 1 :])]


def _reduce(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    shape, axes = _shape(inputs[0]), axes_of(node, inputs)
    if node.op_type == "ArgMax":
        axes = [node.attributes.get_int("axis", 0)]
    over = {axis % len(shape) for axis in (range(len(shape)) if axes is None else axes)}
    if node.attributes.get_int("keepdims", 1):
        return [tuple(1 if axis in over else size for axis, size in enumerate(shape))]
    return [tuple(size for axis, size in enumerate(shape) if axis not in over)]


def _flatten(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source, axis = _shape(inputs[0]), node.attributes.get_int("axis", 1)
    return [(math.prod(source[:axis]), math.prod(source[axis:]))]


def _split(node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    source = _shape(inputs[0])
    axis = node.attributes.get_int("axis", 0) % len(source)
    count = len(node.outputs)
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = numbers(inputs[1], "sizes")
    elif source[axis] % count:
        raise ValueError(f"{source[axis]} can't be split in {count} equal parts")
    else:
        sizes = [source[axis] // count] * count
    if len(sizes) != count or sum(sizes) != source[axis]:
        raise ValueError(f"{source[axis]} can't be split in {sizes}")
    return [(*source[:axis], size, *source[axis + 1 :]) for size in sizes]


def _attention(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    query, value = _shape(inputs[0]), _shape(inputs[2])
    if len(query) != 4 or len(value) != 4 or len(_node.outputs) != 1:
        raise UnknownOperatorError("Attention that isn't by heads")
    return [(*query[:-1], value[-1])]


def _filled(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    return [tuple(numbers(inputs[0], "sizes"))]


def _range(_node: ir.Node, inputs: list[Seen | None]) -> list[Shape]:
    (start,), (limit,), (step,) = (numbers(value, "ends") for value in inputs)
    return [(len(range(start, limit, step)),)]


_SAME = (
    "Identity", "Cast", "Sigmoid", "Tanh", "Relu", "LeakyRelu", "Erf", "Sin", "Cos", "Exp", "Log", "Sqrt", "Neg", "Abs",
    "Reciprocal", "Floor", "Ceil", "Not", "IsNaN", "Clip", "Softmax", "LayerNormalization", "InstanceNormalization",
    "Trilu", "Gelu", "GroupNormalization",
)  # fmt: skip
_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or",
    "Where", "Min", "Max",
)  # fmt: skip
SHAPES: dict[str, Callable[[ir.Node, list[Seen | None]], Sequence[Shape]]] = {
    **dict.fromkeys(_SAME, _first),
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax"), _reduce),
    **dict.fromkeys(("Constant", "Shape"), _first),
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Resize": _resize,
    "Pad": _pad,
    "Gather": _gather,
    "Flatten": _flatten,
    "Split": _split,
    "Attention": _attention,
    "ConstantOfShape": _filled,
    "Range": _range,
}
KNOWN_OPERATORS = frozenset(SHAPES)
