"""What a canonical graph is made before it is lowered, where a request needs it otherwise: for one shape.

Where steps take inner values over from earlier ones it is cut in two, see `kernels.graph.reuse`; where tokens are
merged its self-attentions get fewer, see `kernels.graph.token_merging`; where there are LoRAs it takes them as inputs,
see `kernels.graph.low_rank`. It happens in the process that builds, of the bundle's one graph, over its one file of
weights.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tintype.engine.build.options import BuildOptions
from tintype.errors import RequestError
from tintype.uses import DEEP_FEATURES, LAYERS, Cut, LowRank

if TYPE_CHECKING:
    import onnx_ir as ir

    from tintype.kernels.graph.low_rank import AdaptableLayer

_OF_LAYERS = {
    "attention": re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)$|\.self_attn\.(q|k|v|out)_proj$"),
    "transformer": re.compile(r"\.transformer_blocks\.|\.proj_(in|out)$|\.mlp\.fc[12]$"),
}


def layers_with(name: str) -> str:
    """Of `uses.LAYERS` the first whose layers a layer is among, by its name."""
    return next((layers for layers, pattern in _OF_LAYERS.items() if pattern.search(name)), LAYERS[-1])


def change_graph(model: ir.Model, options: BuildOptions) -> int:
    """Change a canonical graph in place, as options want it; the bytes of inner values and of LoRAs that it takes.

    Raises RequestError where the graph has nothing that could be changed so.
    """
    from tintype.kernels.graph.dims import fold_sizes, pin
    from tintype.kernels.graph.token_merging import merge_tokens

    dims = dict(options.dims)
    pin(model, dims)
    fold_sizes(model)  # a size that is read off a deep value would keep all that it takes to compute that
    # Before the cut, which may leave other layers the finest.
    merging = options.token_merging
    if merging and not merge_tokens(model, merging, (dims["height"], dims["width"])):
        raise RequestError("this model has no self-attention whose tokens could be merged", fix="leave it out")
    given = 0 if options.low_rank is None else _declare_low_rank(model, options.low_rank)
    taken = 0 if options.cut is None else _cut(model, options.cut)
    if options.low_rank is not None:  # behind the cut, so that what one graph gives the other one takes
        _add_low_rank(model, options.low_rank)
    return given + taken


def _cut(model: ir.Model, cut: Cut) -> int:
    from tintype.kernels.graph.reuse import give_values, take_values
    from tintype.kernels.graph.segments import value_nbytes

    values = _values(model.graph, cut)
    if not cut.takes:
        give_values(model, values)
        return 0
    take_values(model, values)
    return int(sum(map(value_nbytes, values)))


def _declare_low_rank(model: ir.Model, low_rank: LowRank) -> int:
    """Both graphs of a cut have the same inputs for LoRAs, of which one reads less; the bytes of them all."""
    from tintype.kernels.graph.low_rank import PREFIX, add_low_rank_inputs
    from tintype.kernels.graph.segments import value_nbytes

    add_low_rank_inputs(model.graph, _chosen_layers(model, low_rank), low_rank.rank)
    return int(sum(value_nbytes(value) for value in model.graph.inputs if str(value.name).startswith(PREFIX)))


def _add_low_rank(model: ir.Model, low_rank: LowRank) -> None:
    from tintype.kernels.graph.low_rank import add_low_rank

    add_low_rank(model.graph, _chosen_layers(model, low_rank))


def _chosen_layers(model: ir.Model, low_rank: LowRank) -> list[AdaptableLayer]:
    from tintype.kernels.graph.low_rank import adaptable_layers

    most = LAYERS.index(low_rank.layers)
    found = adaptable_layers(model.graph)
    return [layer for name, layer in found.items() if LAYERS.index(layers_with(name)) <= most]


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
