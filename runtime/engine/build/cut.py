"""The two graphs that a denoiser's is lowered to where steps take inner values over; see `kernels.graph.reuse`.

Both are cut out of the bundle's one canonical graph in the process that builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tintype.errors import RequestError
from tintype.uses import DEEP_FEATURES, Cut

if TYPE_CHECKING:
    import onnx_ir as ir


def cut_graph(model: ir.Model, cut: Cut, dims: Mapping[str, int]) -> int:
    """Make one of the two of a canonical graph, in place, for these numbers of its dims; the bytes that it takes.

    Raises RequestError where the graph has no such values.
    """
    from tintype.kernels.graph.dims import fold_sizes, pin
    from tintype.kernels.graph.reuse import give_values, take_values
    from tintype.kernels.graph.segments import value_nbytes

    pin(model, dims)
    fold_sizes(model)  # a size that is read off a deep value would keep all that it takes to compute that
    values = _values(model.graph, cut)
    if not cut.takes:
        give_values(model, values)
        return 0
    take_values(model, values)
    return int(sum(map(value_nbytes, values)))


def _values(graph: ir.Graph, cut: Cut) -> list[ir.Value]:
    from tintype.kernels.graph.reuse import cross_attentions, deep_features

    if cut.values == DEEP_FEATURES:
        found = deep_features(graph)
        if cut.branch >= len(found):
            raise RequestError(
                f"cache_branch {cut.branch} is deeper than this model goes, which has {len(found)} skip connections",
                fix=f"give 0 to {len(found) - 1}" if found else "leave cache_interval out",
            )
        return [found[cut.branch]]
    found = cross_attentions(graph)
    if not found:
        raise RequestError("this model has no cross-attention to gate", fix="leave gate_step out")
    return found
