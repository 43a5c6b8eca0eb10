"""What a request makes of a canonical graph before it is lowered: for one shape.

Where steps take inner values over from earlier ones a denoiser's is cut in two, see `kernels.graph.reuse`; where
tokens are merged its self-attentions get fewer, see `kernels.graph.token_merging`; where ControlNets or T2I-Adapters
control it, it takes what they give, see `kernels.graph.residuals` and `kernels.graph.features`; where there are LoRAs,
it or a text encoder's takes them as inputs, see `kernels.graph.low_rank`; where pictures stand beside the words, its
cross-attentions take keys and values of these, see `kernels.graph.image_tokens`; a text encoder's takes embeddings that
are not its own, see `kernels.graph.added_rows`. It happens in the process that builds, of the bundle's one graph, over
its one file of weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tintype.engine.build.options import BuildOptions
from tintype.errors import RequestError
from tintype.uses import (
    DEEP_FEATURES,
    EMBEDDING_ROWS,
    FIRST_ADDED_ID,
    LAYERS,
    MID_RESIDUAL,
    Cut,
    ImageTokens,
    LowRank,
    adapter_feature,
    down_residual,
)

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
    """Change a canonical graph in place as a build's options want it; the bytes of values that it then takes beside.

    Raises RequestError where the graph has nothing that could be changed so.
    """
    from tintype.kernels.graph.dims import fold_sizes, pin
    from tintype.kernels.graph.token_merging import merge_tokens

    dims = dict(options.dims)
    pin(model, dims)
    fold_sizes(model)  # a size that is read off a deep value would keep all that it takes to compute that
    # Before the cut, which may leave other layers the finest.
    if options.token_merging and not merge_tokens(model, options.token_merging, (dims["height"], dims["width"])):
        raise RequestError("this model has no self-attention whose tokens could be merged", fix="leave it out")
    if options.embedding_rows:
        _take_embeddings(model, options.embedding_rows)
    taken = _take_features(model, options.features) if options.features else []
    taken += _take_residuals(model, options.residuals) if options.residuals else []  # behind features, as diffusers has
    given = 0 if options.low_rank is None else _declare_low_rank(model, options.low_rank)
    cut = (
        None if options.cut is None else _values(model.graph, options.cut)
    )  # an attention gives the pictures' part too
    if options.image_tokens is not None:
        taken += _take_image_tokens(model, options.image_tokens)
    if options.cut is not None and cut is not None:
        taken += _cut(model, options.cut, cut)
    if options.low_rank is not None:  # behind the cut, so that what one graph gives the other one takes
        _add_low_rank(model, options.low_rank)
    return given + _total_nbytes(taken)


def _cut(model: ir.Model, cut: Cut, values: list[ir.Value]) -> list[ir.Value]:
    """Cut a denoiser's graph at these values; what it then takes."""
    from tintype.kernels.graph.reuse import give_values, take_values

    if not cut.takes:
        give_values(model, values)
        return []
    take_values(model, values)
    return values


def _total_nbytes(values: Sequence[ir.Value]) -> int:
    from tintype.kernels.graph.segments import value_nbytes

    return int(sum(map(value_nbytes, values)))


def _declare_low_rank(model: ir.Model, low_rank: LowRank) -> int:
    """Both graphs of a cut have the same inputs for LoRAs, of which one reads less; the bytes of them all."""
    from tintype.kernels.graph.low_rank import PREFIX, add_low_rank_inputs
    from tintype.kernels.graph.segments import value_nbytes

    add_low_rank_inputs(model.graph, _chosen_layers(model, low_rank), low_rank.rank, low_rank.scaled)
    return int(sum(value_nbytes(value) for value in model.graph.inputs if str(value.name).startswith(PREFIX)))


def _add_low_rank(model: ir.Model, low_rank: LowRank) -> None:
    from tintype.kernels.graph.low_rank import add_low_rank

    add_low_rank(model.graph, _chosen_layers(model, low_rank), low_rank.scaled)


def _chosen_layers(model: ir.Model, low_rank: LowRank) -> list[AdaptableLayer]:
    from tintype.kernels.graph.low_rank import adaptable_layers

    most = LAYERS.index(low_rank.layers)
    found = adaptable_layers(model.graph)
    return [layer for name, layer in found.items() if LAYERS.index(layers_with(name)) <= most]


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


def _take_features(model: ir.Model, sizes: Sequence[tuple[int, int, int]]) -> list[ir.Value]:
    from tintype.kernels.graph.features import feature_places, skip_sizes, take_features

    places = feature_places(model.graph, sizes)
    if places is None:
        known = _sizes(skip_sizes(model.graph)) or "none"
        raise RequestError(
            f"this T2I-Adapter gives features of {_sizes(sizes)} (channels, height, width), and this model's skip "
            f"connections have {known}",
            fix="give a T2I-Adapter that was trained for this model's family",
        )
    return take_features(model, places, [*map(adapter_feature, range(len(places)))])


def _sizes(sizes: Sequence[tuple[int, int, int]]) -> str:
    return ", ".join("x".join(map(str, size)) for size in sizes)


def _listed(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels)) or "none of them"


def _take_image_tokens(model: ir.Model, wanted: ImageTokens) -> list[ir.Value]:
    from tintype.kernels.graph.image_tokens import take_image_tokens

    added = take_image_tokens(model, wanted.tokens, wanted.masks)
    if not added:
        raise RequestError(
            "this model has no cross-attention that pictures could be looked at by", fix="leave image prompts out"
        )
    return added


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
