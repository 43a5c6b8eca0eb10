"""Modules that a child process gets only once it uses them.

onnx_ir imports sympy, which takes longer to load than onnx_ir and onnx together, and longer than many a graph takes to
build; it asks it only for arithmetic with dims that have no number yet, which no build of a known shape comes to. onnx
imports what reads graphs written as text.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

LATE = frozenset(
    {
        "sympy",
        "onnx_ir._symbolic_shapes",  # asks sympy for its functions at once
        "google.protobuf.json_format",
        "google.protobuf.text_format",
    }
)


class _LateFinder(MetaPathFinder):
    """Finds these modules where Python does, and leaves their code for when the first attribute is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in LATE else None
        if spec is None or not isinstance(spec.loader, Loader):
            return None
        spec.loader = LazyLoader(spec.loader)
        return spec


def import_late() -> None:
    """From now on this process loads `LATE` when they are used, and not when they are imported."""
    sys.meta_path.insert(0, _LateFinder())
