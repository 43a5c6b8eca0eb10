"""What a graph's values are at one choice of sizes: shapes and types of all, numbers of what is made of shapes alone.

Nothing is run: shapes follow from shapes, and only small constants are computed, in numpy. An operator that isn't in
the tables here is one that no rewrite of this package is sure of, and `UnknownOperatorError` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tintype.export.canonical.operator_shapes import SHAPES, Array, Seen, UnknownOperatorError, cuts_of

MOST_ELEMENTS = 2**18  # of what is computed: position embeddings and masks are among it, weights aren't
MOST_IN_ALL = 2**24  # of one graph


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
    if node.domain != "" or node.op_type not in SHAPES:
        raise UnknownOperatorError(f"{node.domain + '.' if node.domain else ''}{node.op_type}")
    kind = node.op_type
    if kind == "Constant":
        return [Seen.of(constant_in(node))]
    given = [value for value in inputs if value is not None]
    if kind == "Shape":
        start, end = (node.attributes.get_int(name, none) for name, none in (("start", 0), ("end", 64)))
        return [Seen.of(np.array(given[0].shape[start:end], np.int64))]
    shapes = SHAPES[kind](node, inputs)
    small = kind in NUMBERS and max(map(math.prod, shapes)) <= MOST_ELEMENTS
    if small and all(value.array is not None for value in given):
        arrays = [None if value is None else value.array for value in inputs]
        return [Seen.of(np.asarray(NUMBERS[kind](node, arrays)))]
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


def _divided(_node: ir.Node, arrays: list[Any]) -> Array:
    a, b = arrays
    if np.asarray(a).dtype.kind == "f":
        return np.asarray(a / b)
    return np.asarray((np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(np.asarray(a).dtype))


def _cut(_node: ir.Node, arrays: list[Any]) -> Array:
    cuts = [slice(None)] * arrays[0].ndim
    for axis, cut in cuts_of([None if array is None else Seen.of(array) for array in arrays]):
        cuts[axis] = cut
    return np.asarray(arrays[0][tuple(cuts)])


def _as_shaped(node: ir.Node, arrays: list[Any]) -> Array:
    (shape,) = SHAPES[node.op_type](node, [None if array is None else Seen.of(array) for array in arrays])
    return np.asarray(arrays[0].reshape(shape))


def _upper_or_lower(node: ir.Node, arrays: list[Any]) -> Array:
    diagonal = int(arrays[1]) if len(arrays) > 1 and arrays[1] is not None else 0
    return np.triu(arrays[0], diagonal) if node.attributes.get_int("upper", 1) else np.tril(arrays[0], diagonal)


def _of_two(function: Callable[[Any, Any], Any]) -> Callable[[ir.Node, list[Any]], Array]:
    return lambda _node, arrays: np.asarray(function(arrays[0], arrays[1]))


NUMBERS: dict[str, Callable[[ir.Node, list[Any]], Array]] = {
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
