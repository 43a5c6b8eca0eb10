"""What a request makes of a canonical graph before it is lowered: for one shape.

Where steps take inner values over from earlier ones a denoiser's is cut in two, see `kernels.graph.reuse`; where tokens
are merged its self-attentions get fewer, see `kernels.graph.token_merging`; where ControlNets control it, it takes what
they give, see `kernels.graph.residuals`; a text encoder's takes embeddings that are
not its own, see `kernels.graph.added_rows`. It happens in the process that builds, of the bundle's one graph, over its
one file of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tintype.errors import RequestError
from tintype.uses import DEEP_FEATURES, EMBEDDING_ROWS, FIRST_ADDED_ID, MID_RESIDUAL, Cut, down_residual

if TYPE_CHECKING:
    import onnx_ir as ir

    from tintype.engine.build.options import BuildOptions


def change_graph(model: ir.Model, options: BuildOptions) -> int:
    """Change a canonical graph in place as a build's options want it; the bytes of values that it then takes beside.

    Raises RequestError where the graph has nothing that could be changed so.
    """
    from tintype.kernels.graph.dims import fold_sizes, pin
    from tintype.kernels.graph.reuse import give_values, take_values
    from tintype.kernels.graph.token_merging import merge_tokens

    dims, cut = dict(options.dims), options.cut
    pin(model, dims)
    fold_sizes(model)  # a size that is read off a deep value would keep all that it takes to compute that
    # Before the cut, which may leave other layers the finest.
    if options.token_merging and not merge_tokens(model, options.token_merging, (dims["height"], dims["width"])):
        raise RequestError("this model has no self-attention whose tokens could be merged", fix="leave it out")
    if options.embedding_rows:
        _take_embeddings(model, options.embedding_rows)
    taken = _take_residuals(model, options.residuals) if options.residuals else []
    if cut is None:
        return _total_nbytes(taken)
    values = _values(model.graph, cut)
    if not cut.takes:
        give_values(model, values)
    else:
        take_values(model, values)
        taken += values
    return _total_nbytes(taken)


def _total_nbytes(values: Sequence[ir.Value]) -> int:
    from tintype.kernels.graph.segments import value_nbytes

    return int(sum(map(value_nbytes, values)))


def _take_residuals(model: ir.Model, channels: Sequence[int]) -> list[ir.Value]:
    from tintype.kernels.graph.residuals import skip_channels, take_residuals

    known = skip_channels(model.graph)
    if known != [*channels]:
        raise RequestError(
            f"this ControlNet gives {_listed(channels)} channels, and this model's skip connections and middle have "
            f"{_listed(known)}",
            fix="give a ControlNet that was trained for this model's family",
        )
    return take_residuals(model, [*map(down_residual, range(len(known) - 1)), MID_RESIDUAL])


def _listed(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels)) or "none of them"


def _take_embeddings(model: ir.Model, rows: int) -> None:
    from tintype.kernels.graph.added_rows import take_rows

    if not take_rows(model, EMBEDDING_ROWS, rows, FIRST_ADDED_ID):
        raise RequestError(
            "this model's text encoder picks no rows of a table, so that it takes no embeddings",
            fix="leave embeddings out, or export the checkpoint again",
        )


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
        raise RequestError("this model has no cross-attention to gate", fix="leave gate_start out")
    return found
