"""Everything that touches ONNX Runtime: which device, which graph, which session.

No other part imports onnxruntime, and nothing here imports onnx: graphs are lowered in a child process.
Names are loaded on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tintype.engine.build.builds import (
        GraphSource,
        begin_builds,
        build_id,
        build_key,
        ensure_build,
        is_timed,
        open_role,
        with_kernels_settled,
    )
    from tintype.engine.build.cache import CacheEntry, cache_entries, cache_folder, clear_cache
    from tintype.engine.build.graph import graph_session, run_graph
    from tintype.engine.build.options import BuildOptions
    from tintype.engine.build.ranges import measure_ranges
    from tintype.engine.device.devices import Device, list_devices
    from tintype.engine.device.hardware import Gpu, gpus
    from tintype.engine.device.installation import ort_version
    from tintype.engine.device.machine import default_threads
    from tintype.engine.device.process_memory import peak_rss_bytes
    from tintype.engine.device.providers import Target, resolve_provider
    from tintype.engine.run.placement import Placement
    from tintype.engine.run.session import Session, open_session

_HOMES = {
    "GraphSource": "build.builds",
    "begin_builds": "build.builds",
    "build_id": "build.builds",
    "build_key": "build.builds",
    "ensure_build": "build.builds",
    "is_timed": "build.builds",
    "open_role": "build.builds",
    "with_kernels_settled": "build.builds",
    "CacheEntry": "build.cache",
    "cache_entries": "build.cache",
    "cache_folder": "build.cache",
    "clear_cache": "build.cache",
    "Device": "device.devices",
    "list_devices": "device.devices",
    "graph_session": "build.graph",
    "run_graph": "build.graph",
    "Gpu": "device.hardware",
    "gpus": "device.hardware",
    "default_threads": "device.machine",
    "BuildOptions": "build.options",
    "Placement": "run.placement",
    "peak_rss_bytes": "device.process_memory",
    "Target": "device.providers",
    "ort_version": "device.installation",
    "resolve_provider": "device.providers",
    "measure_ranges": "build.ranges",
    "Session": "run.session",
    "open_session": "run.session",
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
