"""A graph's analysis for one shape, made in a child process, where onnx may be imported, and kept in the cache.

The child process is `python -m tintype.engine.analyse`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from tintype.engine import cache
from tintype.engine.build import GraphSource, lowering_version
from tintype.engine.child import end_with_parent, last_words, run_child
from tintype.engine.options import BuildOptions
from tintype.errors import BuildError
from tintype.memory.costs import GraphFacts


def analysis_of(bundle: GraphSource, role: str, options: BuildOptions) -> GraphFacts:
    """What a bundle's graph will need at the shape of the options. Raises BuildError when it can't be read."""
    facts = "\0".join((bundle.hash, role, options.shape, lowering_version()))
    place = cache.cache_folder() / "costs" / f"analysis-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    try:
        return GraphFacts(**json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    job = {"source": str(bundle.graph_path(role).resolve()), "dims": dict(options.dims)}
    done = run_child("tintype.engine.analyse", json.dumps(job))
    try:
        found = GraphFacts(**json.loads(done.stdout))
    except (ValueError, TypeError):
        raise BuildError(f"{role} cannot be analysed: {last_words(done)}", fix="export the bundle again") from None
    cache.write_whole(place, done.stdout)
    return found


def main() -> int:
    """Analyse the graph that stdin names; the analysis as JSON on stdout."""
    end_with_parent()
    from dataclasses import asdict

    import onnx_ir as ir

    from tintype.kernels.analysis import analyse
    from tintype.kernels.dims import pin

    job = json.loads(sys.stdin.read())
    model = ir.load(Path(job["source"]))
    pin(model, job["dims"])
    print(json.dumps(asdict(analyse(model.graph))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
