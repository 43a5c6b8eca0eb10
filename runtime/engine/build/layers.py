"""Which layers of a graph LoRAs can change, and of which shape: found in a child process and kept in the cache.

The child process is `python -m tintype.engine.build.layers`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tintype.engine.build.builds import GraphSource
from tintype.engine.build.child import answer_parent
from tintype.engine.build.found import found_once
from tintype.engine.build.late import import_late
from tintype.uses import GraphRef


@dataclass(frozen=True, slots=True)
class AdaptableShapes:
    """By layer its weight's shape as torch has it, and the first of `uses.LAYERS` that it is among."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    among: Mapping[str, str] = field(default_factory=dict)


def adaptable_shapes(bundle: GraphSource, ref: GraphRef) -> AdaptableShapes:
    """Those of a bundle's graph. Raises BuildError when it can't be read."""
    job, facts = {"source": str(bundle.graph_path(ref.role, ref.variant).resolve())}, (bundle.hash, str(ref))
    return found_once(AdaptableShapes, "layers", facts, "tintype.engine.build.layers", job, f"{ref} cannot be read")


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
