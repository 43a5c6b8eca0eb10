"""A graph's analysis for one shape, made in a child process, where onnx may be imported, and kept in the cache.

The child process is `python -m tintype.engine.analyse`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tintype.engine import cache
from tintype.engine.build import GraphSource, lowering_version
from tintype.engine.options import BuildOptions
from tintype.engine.parent import end_with_parent
from tintype.errors import BuildError


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphAnalysis:
    """`kernels.analysis.Analysis`, without importing onnx."""

    stored_bytes: int
    float_bytes: int
    largest_bytes: int
    live_bytes: int
    multiplications: int


def analysis_of(bundle: GraphSource, role: str, options: BuildOptions) -> GraphAnalysis:
    """What a bundle's graph will need at the shape of the options. Raises BuildError when it can't be read."""
    facts = "\0".join((bundle.hash, role, options.shape, lowering_version()))
    place = cache.cache_folder() / "costs" / f"analysis-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    try:
        return GraphAnalysis(**json.loads(place.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    job = {"source": str(bundle.graph_path(role).resolve()), "dims": dict(options.dims)}
    command = [sys.executable, "-P", "-m", "tintype.engine.analyse"]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)
    try:
        found = GraphAnalysis(**json.loads(done.stdout))
    except (ValueError, TypeError):
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BuildError(f"{role} cannot be analysed: {told}", fix="export the bundle again") from None
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = place.with_name(f".{place.name}.{os.getpid()}")
    scratch.write_text(done.stdout, encoding="utf-8")
    scratch.replace(place)
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
