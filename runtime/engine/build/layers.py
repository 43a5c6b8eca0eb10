"""Which layers of a graph LoRAs can change, and of which shape: found in a child process and kept in the cache.

The child process is `python -m tintype.engine.build.layers`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype import strict_json
from tintype.engine.build import cache
from tintype.engine.build.analyse import MOST_SECONDS
from tintype.engine.build.builds import GraphSource
from tintype.engine.build.child import MEMORY, ChildError, answer_parent, run_child
from tintype.engine.build.code_version import lowering_version
from tintype.engine.build.late import import_late
from tintype.errors import BuildError
from tintype.files import read_cached, write_cached
from tintype.uses import GraphRef


@dataclass(frozen=True, slots=True)
class AdaptableShapes:
    """By layer its weight's shape as torch has it, and the first of `uses.LAYERS` that it is among."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    among: Mapping[str, str] = field(default_factory=dict)


def adaptable_shapes(bundle: GraphSource, ref: GraphRef) -> AdaptableShapes:
    """Those of a bundle's graph. Raises BuildError when it can't be read."""
    facts = "\0".join((bundle.hash, str(ref), lowering_version()))
    place = cache.cache_folder() / "costs" / f"layers-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    with contextlib.suppress(OSError, ValueError):
        return strict_json.read(AdaptableShapes, strict_json.parse(read_cached(place)))
    source = bundle.graph_path(ref.role, ref.variant).resolve()
    try:
        found = run_child("tintype.engine.build.layers", json.dumps({"source": str(source)}), MOST_SECONDS)
    except ChildError as error:
        fix = "close other programs" if error.kind == MEMORY else "export the bundle again"
        raise BuildError(f"{ref} cannot be read: {error.message}", fix=fix, kind=error.kind) from None
    write_cached(place, json.dumps(found))
    return strict_json.read(AdaptableShapes, found)


def main() -> int:
    """Look at the graph that stdin names."""
    import_late()
    return answer_parent(_answer)


def _answer(text: str) -> dict[str, Any]:
    import onnx_ir as ir

    from tintype.engine.build.change import layers_with
    from tintype.kernels.graph.low_rank import adaptable_layers

    found = adaptable_layers(ir.load(Path(json.loads(text)["source"])).graph)
    return {
        "shapes": {name: list(layer.shape) for name, layer in found.items()},
        "among": {name: layers_with(name) for name in found},
    }


if __name__ == "__main__":
    sys.exit(main())
