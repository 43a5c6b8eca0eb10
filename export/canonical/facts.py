"""What rewrites may know of a graph's values, and how they put new nodes in: names, shapes and types stay told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from tintype.export.canonical.operator_shapes import Seen
from tintype.export.canonical.sizes import Dim, Probe, dim_of
from tintype.export.canonical.values import look

Dims = tuple[Dim, ...]


class Facts:
    """Of every value of a graph: its shape by names, its type, and its numbers where sizes alone decide on them."""

    def __init__(self, graph: ir.Graph, chosen: Sequence[Probe]) -> None:
        """Raises what `look` does."""
        self.graph, self.chosen = graph, chosen
        looks = [look(graph, probe) for probe in chosen]
        self._seen = {value: [each[value] for each in looks] for value in looks[0]}
        self._dims: dict[ir.Value, Dims] = {}
        self._inserted = 0

    def __contains__(self, value: object) -> bool:
        return value in self._seen

    def dims(self, value: ir.Value | None) -> Dims:
        """The shape; () of what isn't there."""
        if value is None:
            return ()
        if value not in self._dims:
            shapes = [seen.shape for seen in self._seen[value]]
            self._dims[value] = tuple(dim_of(sizes, self.chosen) for sizes in zip(*shapes, strict=True))
        return self._dims[value]

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        return self._seen[value][0].dtype

    def arrays(self, value: ir.Value | None) -> list[NDArray[Any]] | None:
        """The numbers at each choice of sizes, of what is made of shapes and constants."""
        arrays = [seen.array for seen in self._seen[value]] if value in self._seen else [None]
        return None if any(array is None for array in arrays) else arrays  # type: ignore[return-value]

    def constant(self, value: ir.Value | None) -> NDArray[Any] | None:
        """The numbers of what is the same at any size."""
        arrays = self.arrays(value)
        if arrays is None or any(not _equal(array, arrays[0]) for array in arrays[1:]):
            return None
        return arrays[0]

    def scalar(self, value: ir.Value | None) -> float | None:
        """The one number of such a value."""
        array = self.constant(value)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def copy(self, new: ir.Value, like: ir.Value) -> None:
        self._seen[new] = [Seen(seen.shape, seen.dtype) for seen in self._seen[like]]

    def constant_value(self, array: NDArray[Any], name: str) -> ir.Value:
        """An initializer; one of the same name and numbers is shared, another name is made where it is taken."""
        array, stem, count = np.asarray(array, order="C"), name, 0
        while name in self.graph.initializers:
            known = self.graph.initializers[name]
            if known.const_value is not None and _equal(known.const_value.numpy(), array):
                return known
            count += 1
            name = f"{stem}_{count}"
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self.graph.register_initializer(value)
        self._seen[value] = [Seen.of(array)] * len(self.chosen)
        return value

    def insert(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        shapes: Sequence[Sequence[int]],
        like: ir.Value,
        outputs: int = 1,
    ) -> ir.Node:
        """A new node in front of another. shapes: of its outputs at each choice; like: whose type they have."""
        self._inserted += 1
        name = f"{module_of(before)}/{operator}_inserted_{self._inserted}"
        node = ir.node(operator, inputs=list(inputs), attributes=dict(attributes or {}), num_outputs=outputs, name=name)
        self.graph.insert_before(before, node)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}_output_{index}"
            self._seen[output] = [Seen(tuple(shape), self.dtype(like)) for shape in shapes]
        return node

    def shapes(self, value: ir.Value | None) -> list[tuple[int, ...]]:
        """At each choice of sizes."""
        return [seen.shape for seen in self._seen[value]] if value is not None else []

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of `old`, and the graph's outputs, read `new`, which takes over an output's name."""
        was_output, name = old.is_graph_output(), old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if was_output:
            old.name, new.name = f"{name}_before", name


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other, equal_nan=True))


def module_of(node: ir.Node) -> str:
    """The torch module that a node came from, as in its state dict; torch's tracer names nodes by it, with slashes."""
    parts = [part for part in str(node.name or "").split("/")[:-1] if part]
    return ".".join(parts)


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes a value where it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in operators else None


def only_reader(value: ir.Value, *operators: str) -> ir.Node | None:
    """The one node that reads a value where it is one of these operators, and the graph doesn't give it."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if node.domain == "" and node.op_type in operators else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The second of two inputs, whichever place it has; None where both are `value`."""
    rest = [each for each in node.inputs if each is not value]
    return rest[0] if len(rest) == 1 else None
