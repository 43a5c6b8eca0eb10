"""One graph outside any bundle, lowered, run and forgotten: for parity gates and measurements."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tintype.engine.build.builds import lower_into
from tintype.engine.build.options import ANY_SHAPE, BuildOptions
from tintype.engine.device.providers import resolve_provider
from tintype.engine.run.session import Session, open_session

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape")
_HEAVY = ("Conv", "MatMul", "Gemm", "Attention")


@contextmanager
def graph_session(
    model: Path,
    target: str = "cpu",
    *,
    lowered: bool = True,
    options: BuildOptions = ANY_SHAPE,
    threads: int | None = None,
    place: Path | None = None,
) -> Iterator[Session]:
    """A session of an ONNX file; its build lives in a temporary folder, as long as the session.

    lowered: False runs the canonical graph as ONNX Runtime alone optimizes it. place: where that folder is made; None
    is where the system has what is temporary.
    """
    chosen = resolve_provider(target)
    with tempfile.TemporaryDirectory(prefix="tintype-graph-", dir=place, ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        lower_into(Path(model), folder, chosen, lowered=lowered, options=options)
        threads = options.threads if threads is None else threads
        with open_session(
            folder, chosen, threads=threads, allow_off_target=not lowered, mapped=options.mapped
        ) as session:
            yield session


def run_graph(
    model: Path,
    inputs: Mapping[str, NDArray[Any]],
    target: str = "cpu",
    *,
    lowered: bool = True,
    threads: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Outputs by name of one call. Use `graph_session` for more than one: lowering takes seconds."""
    with graph_session(model, target, lowered=lowered, threads=threads) as session:
        return session.run(inputs)


def graph_bytes(model: Path, dims: Mapping[str, int]) -> int:
    """Bytes that one call of a canonical graph reads and writes if every node does both once, in memory.

    Of weights what they are in float32, where they are quantized. Nodes that work on weights alone are done when a
    graph is built, and what only names a value anew moves nothing. Imports onnx. Raises ValueError as
    `graph_operations` does.
    """
    import math

    import onnx_ir as ir

    from tintype.kernels.graph.dims import pin
    from tintype.kernels.graph.segments import constant_values, layer_bytes, value_nbytes

    loaded = ir.load(model)
    pin(loaded, dims)
    moved = float(sum(layer_bytes(loaded)))
    fixed = constant_values(loaded.graph) | set(loaded.graph.initializers.values())
    for node in loaded.graph:
        read = [value for value in node.inputs if value is not None and value not in fixed]
        if read and node.op_type not in _VIEWS:
            moved += sum(map(value_nbytes, (*read, *node.outputs)))
    if not math.isfinite(moved):
        raise ValueError(f"{model.name}: the shapes of its values are not known")
    return int(moved)


def graph_operations(model: Path, dims: Mapping[str, int]) -> dict[str, int]:
    """Multiplications and additions of one call of a canonical graph, by operator, for these numbers of its dims.

    Of convolutions, products and attention; everything else counts as nothing. Imports onnx. Raises ValueError when a
    dim of an input has no number, or the shape of something that counts does not follow.
    """
    import onnx_ir as ir

    from tintype.kernels.graph.analysis import multiplications
    from tintype.kernels.graph.dims import pin

    loaded = ir.load(model)
    pin(loaded, dims)
    found: Counter[str] = Counter()
    for node in loaded.graph:
        if node.op_type in _HEAVY:
            if any(value is not None and (value.shape is None or not value.shape.is_static()) for value in node.inputs):
                raise ValueError(f"{node.op_type} {node.name}: the shapes of its inputs are not known")
            found[node.op_type] += 2 * multiplications(node)
    return dict(found)
