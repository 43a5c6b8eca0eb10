"""A graph's analysis for one shape, made in a child process, where onnx may be imported, and kept in the cache.

The child process is `python -m tintype.engine.build.analyse`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tintype.costs import GraphFacts
from tintype.engine.build.builds import GraphSource
from tintype.engine.build.change import change_graph
from tintype.engine.build.child import answer_parent
from tintype.engine.build.found import found_once
from tintype.engine.build.late import import_late
from tintype.engine.build.options import BuildOptions
from tintype.uses import GraphRef


def analysis_of(bundle: GraphSource, ref: GraphRef, options: BuildOptions) -> GraphFacts:
    """What a bundle's graph will need at the shape of the options, and changed as they want it.

    Raises BuildError when it can't be read, RequestError when it can't be changed so.
    """
    job = {"source": str(bundle.graph_path(ref.role, ref.variant).resolve()), "options": asdict(options)}
    facts = (bundle.hash, str(ref), options.shape, options.change)
    return found_once(GraphFacts, "analysis", facts, "tintype.engine.build.analyse", job, f"{ref} cannot be analysed")


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
