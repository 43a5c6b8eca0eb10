"""What a graph computes of its own shapes, said plainly: constants, Reshape with 0 and -1, or sizes of its inputs.

Exact: the numbers are those that were seen at three choices of sizes, which tell every expression apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tintype.export.canonical.facts import Dims, Facts
from tintype.export.canonical.sizes import Dim, Size

INTEGERS = np.dtype(np.int64)


def plain_shapes(model: ir.Model, facts: Facts) -> None:
    """Rewrite every input that follows from shapes, in place; what computed it goes."""
    sizes = _InputSizes(model, facts)
    for node in list(model.graph):
        if all(facts.arrays(output) is not None for output in node.outputs) and not _is_given(node):
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.is_graph_input() or value.is_initializer() or facts.arrays(value) is None:
                continue
            plain = _plain(node, index, value, facts, sizes)
            if plain is not None:
                node.replace_input_with(index, plain)
    RemoveUnusedNodesPass()(model)


def _is_given(node: ir.Node) -> bool:
    return any(output.is_graph_output() for output in node.outputs)


def _plain(node: ir.Node, index: int, value: ir.Value, facts: Facts, sizes: _InputSizes) -> ir.Value | None:
    constant = facts.constant(value)
    if constant is not None:
        return facts.constant_value(constant, str(value.name).strip("/").replace("/", ".").replace("_output_0", ""))
    if node.op_type == "Reshape" and index == 1:
        wanted = reshape_target(facts.dims(node.inputs[0]), facts.dims(node.outputs[0]))
        if wanted is not None:
            node.attributes.pop("allowzero", None)
            return facts.constant_value(np.array(wanted, np.int64), "shape_" + "_".join(map(str, wanted)))
    arrays = facts.arrays(value) or []
    if facts.dtype(value) != INTEGERS or len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        return None
    from tintype.export.canonical.sizes import dim_of

    dims = [dim_of([int(number) for number in seen], facts.chosen) for seen in zip(*arrays, strict=True)]
    return sizes.tensor(dims)


def reshape_target(before: Dims, after: Dims) -> list[int] | None:
    """Numbers, 0 where a dim stays in its place and -1 once; None where that isn't enough."""
    wanted = []
    for axis, dim in enumerate(after):
        if isinstance(dim, int):
            wanted.append(dim)
        else:
            wanted.append(0 if axis < len(before) and dim is not None and before[axis] == dim else -1)
    return wanted if wanted.count(-1) <= 1 and 0 not in after else None


class _InputSizes:
    """Tensors of sizes, made of the shapes of a graph's inputs at its beginning, each once."""

    def __init__(self, model: ir.Model, facts: Facts) -> None:
        self._graph, self._facts, self._first = model.graph, facts, model.graph[0]
        self._made: dict[str, ir.Value] = {}
        self._axes = {
            str(dim.value): (value, axis)
            for value in reversed(list(model.graph.inputs))
            for axis, dim in enumerate(value.shape or ())
            if not isinstance(dim, int)
        }

    def tensor(self, dims: Sequence[Dim]) -> ir.Value | None:
        """An int64 vector of these sizes; None where one of them is no expression over the inputs' names."""
        if not dims or any(dim is None for dim in dims):
            return None
        if any(isinstance(dim, Size) and not set(dim.names) <= self._axes.keys() for dim in dims):
            return None
        parts = [self._part(dim) for dim in dims if dim is not None]
        if len(parts) == 1:
            return parts[0]
        name = "sizes_" + "_".join(map(str, dims))
        if name not in self._made:
            self._made[name] = self._node("Concat", parts, name, {"axis": 0}, length=len(parts))
        return self._made[name]

    def _part(self, dim: int | Size) -> ir.Value:
        if isinstance(dim, int):
            return self._facts.constant_value(np.array([dim], np.int64), f"size_{dim}")
        if str(dim) not in self._made:
            self._made[str(dim)] = self._expression(dim)
        return self._made[str(dim)]

    def _expression(self, dim: Size) -> ir.Value:
        value = self._named(dim.names[0])
        for name in dim.names[1:]:
            value = self._node("Mul", [value, self._named(name)], f"{value.name}_{name}")
        for operator, number, none in (
            ("Mul", dim.factor.numerator, 1), ("Div", dim.factor.denominator, 1), ("Add", dim.plus, 0),
        ):  # fmt: skip
            if number != none:
                value = self._node(operator, [value, self._part(number)], f"{value.name}_{operator.lower()}_{number}")
        return value

    def _named(self, name: str) -> ir.Value:
        key = f"size_of_{name}"
        if key not in self._made:
            value, axis = self._axes[name]
            self._made[key] = self._node("Shape", [value], key, {"start": axis, "end": axis + 1})
        return self._made[key]

    def _node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: dict[str, int] | None = None,
        length: int = 1,
    ) -> ir.Value:
        node = ir.node(operator, inputs=list(inputs), attributes=attributes or {}, name=f"sizes/{name}")
        self._graph.insert_before(self._first, node)
        output = node.outputs[0]
        output.name, output.shape, output.type = name, ir.Shape((length,)), ir.TensorType(ir.DataType.INT64)
        return output
