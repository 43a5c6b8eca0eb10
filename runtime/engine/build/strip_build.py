"""The part of making a build that is about strips: a graph is cut, and its pieces are lowered and saved one by one.

Runs in the child process that makes a build.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tintype.engine.build.weights import weight_files
from tintype.engine.run.chain import ChainFacts, Port, write_chains
from tintype.engine.run.strips import HEAD, TAIL, NormFacts, StageFacts, StripPort, StripsFacts, write_strips
from tintype.errors import UncutError
from tintype.kernels.graph.strips import CutError, Stage, StripMap, cut_in_strips

if TYPE_CHECKING:
    import onnx_ir as ir


def save_strips(
    model: ir.Model,
    strip_bytes: int,
    folder: Path,
    *,
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    lower: Callable[[ir.Model], None],
    save: Callable[[ir.Model, str], None],
    save_chain: Callable[[ir.Model, str], ChainFacts],
) -> None:
    """Cut a pinned, canonical graph and write all its pieces.

    ports: of the whole. lower: rewrites a piece. save: writes one as a file of that name. save_chain: the same as a
    chain of parts. Raises UncutError for a graph that can't run in strips.
    """
    try:
        cut = cut_in_strips(model, strip_bytes)
    except CutError as reason:
        raise UncutError(f"the graph can't run in strips: {reason}", fix="run it whole, or in tiles") from None
    ends = {name: end for name, end in ((HEAD, cut.head), (TAIL, cut.tail)) if end is not None}
    for end in ends.values():
        lower(end)
    if ends:
        write_chains(folder, {name: save_chain(end, name) for name, end in ends.items()})
    stages = []
    for number, stage in enumerate(cut.stages):
        file = f"strips-{number:03}.onnx"
        lower(stage.model)
        save(stage.model, file)
        stages.append(_facts(stage, file, weight_files(folder / file)))
    write_strips(folder, StripsFacts(tuple(stages), *ports, held_bytes=strip_bytes))


def _facts(stage: Stage, file: str, weights: tuple[str, ...]) -> StageFacts:
    return StageFacts(
        file=file,
        weights=weights,
        rows=stage.rows,
        strip_rows=stage.strip_rows,
        margin=stage.margin,
        reads=tuple(map(_port, stage.reads)),
        gives=tuple(map(_port, stage.gives)),
        norms=tuple(NormFacts(norm.source, norm.mean, norm.inverse, norm.groups, norm.epsilon) for norm in stage.norms),
    )


def _port(each: StripMap) -> StripPort:
    return StripPort(each.name, each.shape, each.type.numpy().name, each.scale, each.seen)
