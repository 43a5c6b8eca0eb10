"""A graph's analysis for one shape, made in a child process, where onnx may be imported, and kept in the cache.

The child process is `python -m tintype.engine.build.analyse`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.costs import GraphFacts
from tintype.engine.build import cache
from tintype.engine.build.builds import GraphSource
from tintype.engine.build.change import change_graph
from tintype.engine.build.child import MEMORY, REFUSED, ChildError, answer_parent, run_child
from tintype.engine.build.code_version import lowering_version
from tintype.engine.build.late import import_late
from tintype.engine.build.options import BuildOptions
from tintype.errors import BuildError, RequestError
from tintype.files import read_cached, write_cached
from tintype.uses import GraphRef

MOST_SECONDS = 600.0  # against a graph that never ends; the largest we know takes seconds


def analysis_of(bundle: GraphSource, ref: GraphRef, options: BuildOptions) -> GraphFacts:
    """What a bundle's graph will need at the shape of the options, and changed as they want it.

    Raises BuildError when it can't be read, RequestError when it can't be changed so.
    """
    facts = "\0".join((bundle.hash, str(ref), options.shape, options.change, lowering_version()))
    place = cache.cache_folder() / "costs" / f"analysis-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError):
        return strict_json.read(GraphFacts, strict_json.parse(read_cached(place)))
    source = bundle.graph_path(ref.role, ref.variant).resolve()
    job: dict[str, Any] = {"source": str(source), "options": asdict(options)}
    try:
        found = GraphFacts(**run_child("tintype.engine.build.analyse", json.dumps(job), MOST_SECONDS))
    except ChildError as error:
        if error.kind == REFUSED and error.fix is not None:
            raise RequestError(error.message, fix=error.fix) from None
        fix = "close other programs" if error.kind == MEMORY else "export the bundle again"
        raise BuildError(f"{ref} cannot be analysed: {error.message}", fix=fix, kind=error.kind) from None
    write_cached(place, json.dumps(asdict(found)))
    return found


def main() -> int:
    """Analyse the graph that stdin names; answers with the analysis."""
    import_late()
    return answer_parent(_answer)


def _answer(text: str) -> dict[str, Any]:
    import onnx_ir as ir

    from tintype.kernels.graph.analysis import analyse
    from tintype.kernels.graph.dims import pin

    job = json.loads(text)
    options = BuildOptions.from_dict(job["options"])
    model = ir.load(Path(job["source"]))
    taken_bytes = change_graph(model, options) if options.is_changed else 0
    pin(model, dict(options.dims))
    return asdict(analyse(model.graph)) | {"taken_bytes": taken_bytes}


if __name__ == "__main__":
    sys.exit(main())
