"""Everything that touches ONNX Runtime: which device, which graph, which session.

No other part imports onnxruntime, and nothing here imports onnx: graphs are lowered in a child process.
Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tintype.engine.build import (
        GraphSource,
        begin_builds,
        build_id,
        build_key,
        ensure_build,
        is_timed,
        open_role,
        with_kernels_settled,
    )
    from tintype.engine.cache import CacheEntry, cache_entries, cache_folder, clear_cache
    from tintype.engine.devices import Device, list_devices
    from tintype.engine.graph import graph_session, run_graph
    from tintype.engine.hardware import Gpu, gpus
    from tintype.engine.installation import ort_version
    from tintype.engine.machine import default_threads
    from tintype.engine.options import BuildOptions
    from tintype.engine.placement import Placement
    from tintype.engine.process_memory import peak_rss_bytes
    from tintype.engine.providers import Target, resolve_provider
    from tintype.engine.ranges import measure_ranges
    from tintype.engine.session import Session, open_session

_HOMES = {
    "GraphSource": "build",
    "begin_builds": "build",
    "build_id": "build",
    "build_key": "build",
    "ensure_build": "build",
    "is_timed": "build",
    "open_role": "build",
    "with_kernels_settled": "build",
    "CacheEntry": "cache",
    "cache_entries": "cache",
    "cache_folder": "cache",
    "clear_cache": "cache",
    "Device": "devices",
    "list_devices": "devices",
    "graph_session": "graph",
    "run_graph": "graph",
    "Gpu": "hardware",
    "gpus": "hardware",
    "default_threads": "machine",
    "BuildOptions": "options",
    "Placement": "placement",
    "peak_rss_bytes": "process_memory",
    "Target": "providers",
    "ort_version": "installation",
    "resolve_provider": "providers",
    "measure_ranges": "ranges",
    "Session": "session",
    "open_session": "session",
}

__all__ = [
    "BuildOptions",
    "CacheEntry",
    "Device",
    "Gpu",
    "GraphSource",
    "Placement",
    "Session",
    "Target",
    "begin_builds",
    "build_id",
    "build_key",
    "cache_entries",
    "cache_folder",
    "clear_cache",
    "default_threads",
    "ensure_build",
    "gpus",
    "graph_session",
    "is_timed",
    "list_devices",
    "measure_ranges",
    "open_role",
    "open_session",
    "ort_version",
    "peak_rss_bytes",
    "resolve_provider",
    "run_graph",
    "with_kernels_settled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
