"""A denoiser's graph that takes what ControlNets give: residuals at its skip connections and in its middle.

(Zhang et al. 2023.) A residual goes to the way up alone: what goes further down is as it was. Zeros change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tintype.kernels.base import insert
from tintype.kernels.graph.reuse import skip_connections


def skip_channels(graph: ir.Graph) -> list[int]:
    """Channels of each skip connection, the outermost first, and last of what the way up begins with.

    The sizes in the graph must be numbers.
    """
    joins = skip_connections(graph)
    values = [join.inputs[1] for join in joins] + [join.inputs[0] for join in joins[-1:]]
    return [int(value.shape.numpy()[1]) for value in values if value is not None and value.shape is not None]


def take_residuals(model: ir.Model, names: Sequence[str]) -> list[ir.Value]:
    """Let a model take residuals as inputs, in place; these. names: in the order of `skip_channels`."""
    joins = skip_connections(model.graph)
    places = [(join, 1) for join in joins] + [(join, 0) for join in joins[-1:]]
    added = []
    for name, (join, index) in zip(names, places, strict=True):
        value = join.inputs[index]
        assert value is not None
        given = ir.Value(name=name, shape=value.shape, type=value.type)
        model.graph.inputs.append(given)
        join.replace_input_with(index, insert(join, "Add", [value, given], like=value))
        added.append(given)
    return added
