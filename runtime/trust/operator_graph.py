"""An operator's own ONNX file: scanned as any graph before a library opens it, then run by ONNX Runtime alone.

It is open from `load` on, and was run once, so that a budget that is planned afterwards has what it takes; it stands in
no plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tintype.errors import NumericError, TintypeError
from tintype.sources.onnx_scan import MalformedGraph, scan_graph

if TYPE_CHECKING:
    from tintype.engine import PlainGraph

MAX_SIDE = 2048  # pixels that such a graph's image may have

Unfit = Callable[[Path, str], TintypeError]  # the error for a file, and what is wrong with it


def open_graph(path: Path, unfit: Unfit, *, threads: int = 1, may_have_data: bool = False) -> PlainGraph:
    """may_have_data: in other files, which were checked with the bundle that it is of. Raises what `unfit` makes."""
    from tintype.engine import PlainGraph

    try:
        facts = scan_graph(path)
        if facts.external and not may_have_data:
            raise MalformedGraph("its weights lie in another file")
        return PlainGraph(path, threads)
    except (OSError, ValueError, MalformedGraph) as error:
        raise unfit(path, getattr(error, "strerror", None) or str(error)) from None
    except Exception as error:
        if not _is_of_runtime(error):
            raise
        raise unfit(path, str(error)) from None


def run_graph(graph: PlainGraph, inputs: Mapping[str, NDArray[Any]], who: str) -> dict[str, NDArray[Any]]:
    """Outputs by name. who: the graph, as an error says it. Raises NumericError where it can't be run."""
    try:
        return graph.run(inputs)
    except Exception as error:
        if not _is_of_runtime(error):
            raise
        raise NumericError(f"{who} can't be run: {error}", fix="give a file that onnxruntime runs by itself") from None


def _is_of_runtime(error: Exception) -> bool:
    """Whether ONNX Runtime raised it; its errors have no kind in common."""
    return type(error).__module__.startswith("onnxruntime")
