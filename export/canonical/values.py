"""What a graph's values are at one choice of sizes: shapes and types of all, numbers of what is made of shapes alone.

Nothing is run: shapes follow from shapes, and only small constants are computed, in numpy. An operator that isn't in
the tables here is one that no rewrite of this package is sure of, and `UnknownOperatorError` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

MOST_ELEMENTS = 2**18  # of what is computed: position embeddings and masks are among it, weights aren't
MOST_IN_ALL = 2**24  # of one graph
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


def look(graph: ir.Graph, dims: Mapping[str, int]) -> dict[ir.Value, Seen]:
    """Every value of a graph whose named dims are these numbers.

    Raises UnknownOperatorError, and ValueError where shapes don't go together.
    """
    seen: dict[ir.Value, Seen] = {}
    for value in graph.inputs:
        shape = tuple(dim if isinstance(dim, int) else dims[str(dim.value)] for dim in value.shape or ())
        seen[value] = Seen(shape, numpy_type(value))
    for value in graph.initializers.values():
        if value.const_value is None:
            raise ValueError(f"the initializer {value.name} has no data")
        shape = tuple(value.const_value.shape.numpy())
        small = math.prod(shape) <= MOST_ELEMENTS
        seen[value] = Seen(shape, numpy_type(value), value.const_value.numpy() if small else None)
    computed = 0
    for node in graph:
        try:
            lost = [value.name for value in node.inputs if value is not None and value not in seen]
            if lost:
                raise ValueError(f"{lost[0]} is made nowhere before it")
            with np.errstate(all="ignore"):
                made = _outputs(node, [seen[value] if value is not None else None for value in node.inputs])
            seen |= zip(node.outputs, made, strict=True)
        except UnknownOperatorError:
            raise
        except (IndexError, KeyError, TypeError, ArithmeticError, AttributeError, MemoryError, ValueError) as error:
            raise ValueError(f"{node.op_type} {node.name}: {error}") from error
        computed += sum(value.array.size for value in made if value.array is not None)
        if computed > MOST_IN_ALL:
            raise ValueError("it computes too much of its own shapes")
    return seen


def numpy_type(value: ir.Value) -> np.dtype[Any]:
    """The element type of an input or an initializer."""
    kind = value.dtype if value.dtype is not None else value.const_value.dtype if value.const_value else None
    if kind is None:
        raise ValueError(f"{value.name} has no type")
    return np.dtype(kind.numpy())


def _outputs(node: ir.Node, inputs: list[Seen | None]) -> list[Seen]:
    if node.domain != "" or node.op_type not in _SHAPES:
        raise UnknownOperatorError(f"{node.domain + '.' if node.domain else ''}{node.op_type}")
    kind = node.op_type
    if kind == "Constant":
        return [Seen.of(constant_in(node))]
    given = [value for value in inputs if value is not None]
    if kind == "Shape":
        start, end = (node.attributes.get_int(name, none) for name, none in (("start", 0), ("end", 64)))
        return [Seen.of(np.array(given[0].shape[start:end], np.int64))]
    shapes = _SHAPES[kind](node, inputs)
    small = kind in _NUMBERS and max(map(math.prod, shapes)) <= MOST_ELEMENTS
    if small and all(value.array is not None for value in given):
        arrays = [None if value is None else value.array for value in inputs]
        return [Seen.of(np.asarray(_NUMBERS[kind](node, arrays)))]
    return [Seen(tuple(map(int, shape)), _dtype(node, given)) for shape in shapes]


def constant_in(node: ir.Node) -> Array:
    """What a Constant node holds."""
    attributes = node.attributes
    if "value" in attributes:
        return attributes["value"].as_tensor().numpy()
    for name, kind in (("value_int", np.int64), ("value_ints", np.int64)):
        if name in attributes:
            return np.array(attributes[name].value, kind)
    for name in ("value_float", "value_floats"):
        if name in attributes:
            return np.array(attributes[name].value, np.float32)
    raise UnknownOperatorError(f"Constant {node.name}")


def _dtype(node: ir.Node, given: Sequence[Seen]) -> np.dtype[Any]:
    if node.op_type == "Cast":
        return np.dtype(ir.DataType(node.attributes["to"].as_int()).numpy())
    if node.op_type in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not", "IsNaN"):
        return np.dtype(np.bool_)
    if node.op_type == "ArgMax":
        return np.dtype(np.int64)
    if node.op_type == "ConstantOfShape":
        return _filling(node).dtype
    return given[1].dtype if node.op_type == "Where" else given[0].dtype


def _filling(node: ir.Node) -> Array:
    filled = node.attributes.get("value")
    return np.zeros(1, np.float32) if filled is None else filled.as_tensor().numpy()


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


def _cuts(inputs: list[Seen | None]) -> list[tuple[int, slice]]:
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
    for axis, cut in _cuts(inputs):
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
_SHAPES: dict[str, Callable[[ir.Node, list[Seen | None]], Sequence[Shape]]] = {
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
KNOWN_OPERATORS = frozenset(_SHAPES)


def _divided(_node: ir.Node, arrays: list[Any]) -> Array:
    a, b = arrays
    if np.asarray(a).dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray((np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.asarray(a).dtype))


def _cut(_node: ir.Node, arrays: list[Any]) -> Array:
    cuts = [slice(None)] * arrays[0].ndim
    for axis, cut in _cuts([None if array is None else Seen.of(array) for array in arrays]):
        cuts[axis] = cut
    return np.asarray(arrays[0][tuple(cuts)])


def _as_shaped(node: ir.Node, arrays: list[Any]) -> Array:
    (shape,) = _SHAPES[node.op_type](node, [None if array is None else Seen.of(array) for array in arrays])
    return np.asarray(arrays[0].reshape(shape))


def _upper_or_lower(node: ir.Node, arrays: list[Any]) -> Array:
    diagonal = int(arrays[1]) if len(arrays) > 1 and arrays[1] is not None else 0
    return np.triu(arrays[0], diagonal) if node.attributes.get_int("upper", 1) else np.tril(arrays[0], diagonal)


def _of_two(function: Callable[[Any, Any], Any]) -> Callable[[ir.Node, list[Any]], Array]:
    return lambda _node, arrays: np.asarray(function(arrays[0], arrays[1]))


_NUMBERS: dict[str, Callable[[ir.Node, list[Any]], Array]] = {
    "Identity": lambda _node, arrays: arrays[0],
    "Cast": lambda node, arrays: arrays[0].astype(_dtype(node, [])),
    "Sqrt": lambda _node, arrays: np.sqrt(arrays[0]),
    "Neg": lambda _node, arrays: -arrays[0],
    "Floor": lambda _node, arrays: np.floor(arrays[0]),
    "Not": lambda _node, arrays: ~arrays[0],
    "Add": _of_two(np.add),
    "Sub": _of_two(np.subtract),
    "Mul": _of_two(np.multiply),
    "Pow": _of_two(np.power),
    "Equal": _of_two(np.equal),
    "Less": _of_two(np.less),
    "Greater": _of_two(np.greater),
    "LessOrEqual": _of_two(np.less_equal),
    "GreaterOrEqual": _of_two(np.greater_equal),
    "And": _of_two(np.logical_and),
    "Or": _of_two(np.logical_or),
    "Div": _divided,
    "Where": lambda _node, arrays: np.where(*arrays),
    "Reshape": _as_shaped,
    "Unsqueeze": _as_shaped,
    "Squeeze": _as_shaped,
    "Flatten": _as_shaped,
    "Transpose": lambda node, arrays: np.transpose(arrays[0], node.attributes.get_ints("perm", None)),
    "Concat": lambda node, arrays: np.concatenate(arrays, axis=node.attributes.get_int("axis", 0)),
    "Slice": _cut,
    "Gather": lambda node, arrays: np.take(arrays[0], arrays[1], axis=node.attributes.get_int("axis", 0)),
    "Expand": lambda _node, arrays: np.broadcast_to(
        arrays[0], np.broadcast_shapes(arrays[0].shape, tuple(map(int, arrays[1])))
    ),
    "ConstantOfShape": lambda node, arrays: np.full(tuple(map(int, arrays[0])), _filling(node)[0]),
    "Range": lambda _node, arrays: np.arange(*(array.item() for array in arrays), dtype=arrays[0].dtype),
    "Trilu": _upper_or_lower,
}
