"""A denoiser's graph that takes what T2I-Adapters give: features added to values on its way down and in its middle.

(Mou et al. 2023.) A feature goes to the last value of its shape that a skip connection leaves from, and so to all that
is computed of that, further down and up; a second one of the same shape goes to what the way up begins with. Zeros
change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tintype.kernels.graph.reuse import skip_connections

Size = tuple[int, int, int]  # channels, height, width


def feature_places(graph: ir.Graph, sizes: Sequence[Size]) -> list[ir.Value] | None:
    """The value that each feature is added to, in order; None where one has no place.

    The sizes in the graph must be numbers.
    """
    joins = skip_connections(graph)
    ends = [join.inputs[1] for join in joins]
    middle = joins[-1].inputs[0] if joins else None
    found: list[ir.Value] = []
    for size in sizes:
        last = next((value for value in reversed(ends) if value is not None and _size(value) == size), None)
        free = [value for value in (last, middle) if value is not None and value not in found and _size(value) == size]
        if last is None or not free:
            return None
        found.append(free[0])
    return found


def skip_sizes(graph: ir.Graph) -> list[Size]:
    """Of each skip connection, the outermost first; each size once."""
    ends = [join.inputs[1] for join in skip_connections(graph)]
    return list(dict.fromkeys(_size(value) for value in ends if value is not None))


def take_features(model: ir.Model, places: Sequence[ir.Value], names: Sequence[str]) -> list[ir.Value]:
    """Let a model take features as inputs, in place; these. places: as `feature_places` found them."""
    added = []
    for name, value in zip(names, places, strict=True):
        maker = value.producer()
        assert maker is not None  # no skip connection leaves from an input
        given = ir.Value(name=name, shape=value.shape, type=value.type)
        model.graph.inputs.append(given)
        add = ir.node("Add", inputs=[value, given])
        total = add.outputs[0]
        total.shape, total.type = value.shape, value.type
        readers = [(use.node, use.idx) for use in value.uses() if use.node is not add]
        model.graph.insert_after(maker, add)
        for node, index in readers:
            node.replace_input_with(index, total)
        added.append(given)
    return added


def _size(value: ir.Value) -> Size:
    """Of an image's value; zeros for any other."""
    shape = value.shape
    if shape is None or len(shape) != 4 or not all(isinstance(dim, int) for dim in shape):
        return 0, 0, 0
    _, channels, height, width = (int(dim) for dim in shape.numpy())
    return channels, height, width
