"""Named dims made numbers: a build is for one shape, and only there can kernels be chosen by measuring them."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import ShapeInferencePass

from tintype.kernels.graph.unused import remove_unused

MOST_SIZES = 64  # numbers in what is taken to be sizes

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def pin(model: ir.Model, dims: Mapping[str, int]) -> None:
    """Put numbers in place of named dims and of expressions over them (`height/2`), in place, wherever they stand.

    Raises ValueError when a dim of an input stays without a number.
    """
    for value in model.graph.inputs:
        names = [str(dim) for dim in value.shape or () if not isinstance(dim, int)]
        loose = [name for name in names if evaluate(name, dims) is None]
        if loose:
            raise ValueError(f"{value.name} has the free dims {', '.join(loose)}; given were {', '.join(dims)}")
    known: dict[str, int | None] = {}
    untold = 0
    for value in _values(model.graph):
        if value.shape is None:
            continue
        value.shape = ir.Shape([_number(dim, dims, known) for dim in value.shape])
        if not value.shape.is_static():
            untold += 1
            value.shape = None  # a name that tells nothing would keep onnx from finding the number
    if untold:
        ShapeInferencePass()(model)


def fold_sizes(model: ir.Model) -> int:
    """Compute what a pinned graph makes of its shapes alone, and put the numbers there; returns how many nodes went.

    ONNX Runtime does so too, but only within the graph that it is given: between the parts of one, sizes would pass as
    tensors, and not every device takes those.
    """
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    known: dict[ir.Value, NDArray[Any]] = {
        value: value.const_value.numpy()
        for value in graph.initializers.values()
        if value.const_value is not None and not value.is_graph_input() and _is_size(value.const_value)
    }
    folded = []
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type == "Shape" and inputs[0].shape is not None and inputs[0].shape.is_static():
            sizes = np.array(inputs[0].shape.numpy(), np.int64)
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
            made: list[NDArray[Any]] = [sizes[start:end]]
        elif inputs and node.domain == "" and all(value in known for value in inputs):
            feed = {str(value.name): known[value] for value in inputs}
            outputs: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, feed)
            made = list(outputs)
        else:
            continue
        if any(array.dtype.kind not in "iub" or array.size > MOST_SIZES for array in made):
            continue
        known |= zip(node.outputs, made, strict=True)
        folded.append(node)
    going = [node for node in folded if not any(output.is_graph_output() for output in node.outputs)]
    for node in going:
        for output in node.outputs:
            tensor = ir.tensor(np.asarray(known[output], order="C"), name=f"{output.name}_folded")
            number = ir.Value(name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype))
            number.shape = ir.Shape(tensor.shape.numpy())
            graph.register_initializer(number)
            output.replace_all_uses_with(number)
    for node in going:
        graph.remove(node, safe=True)
    remove_unused(model)  # and the numbers that only they read
    return len(going)


def _is_size(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL) and tensor.size <= MOST_SIZES


def evaluate(text: str, dims: Mapping[str, int]) -> int | None:
    """A size expression over named dims, or None when it holds anything else or gives no whole number."""
    try:
        number = _evaluate(ast.parse(text, mode="eval").body, dims)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError):
        return None
    return int(number) if number == int(number) else None


def _evaluate(node: ast.expr, dims: Mapping[str, int]) -> float:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return dims[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, dims)
        case ast.Call(func=ast.Name(id="floor"), args=[argument]):
            return float(_evaluate(argument, dims) // 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, dims), _evaluate(right, dims))
    raise ValueError(f"{ast.unparse(node)} is no size")


def _number(
    dim: int | ir.SymbolicDim, dims: Mapping[str, int], known: dict[str, int | None]
) -> int | ir.SymbolicDim | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value not in known:
        known[dim.value] = evaluate(dim.value, dims)
    number = known[dim.value]
    return dim if number is None else number


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]
