"""One graph outside any bundle, lowered, run and forgotten: for parity gates and measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tintype.engine.build import lower_into
from tintype.engine.options import ANY_SHAPE, BuildOptions
from tintype.engine.providers import resolve_provider
from tintype.engine.session import Session, open_session


@contextmanager
def graph_session(
    model: Path,
    target: str = "cpu",
    *,
    lowered: bool = True,
    options: BuildOptions = ANY_SHAPE,
    threads: int | None = None,
) -> Iterator[Session]:
    """A session of an ONNX file; its build lives in a temporary folder, as long as the session.

    lowered: False runs the canonical graph as ONNX Runtime alone optimizes it.
    """
    chosen = resolve_provider(target)
    with tempfile.TemporaryDirectory(prefix="tintype-graph-", ignore_cleanup_errors=True) as scratch:
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


def graph_shapes(model: Path, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every value of a canonical graph by name, with numbers for its named dims; imports onnx.

    Raises ValueError when an input's dim has no number. A value whose shape can't be told is left out.
    """
    import onnx_ir as ir

    from tintype.kernels.dims import pin

    loaded = ir.load(model)
    pin(loaded, dims)
    graph = loaded.graph
    values = [*graph.inputs, *graph.initializers.values(), *(output for node in graph for output in node.outputs)]
    return {
        str(value.name): tuple(int(str(dim)) for dim in value.shape)
        for value in values
        if value.shape is not None and value.shape.is_static()
    }
