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
    from tintype.engine.build.cache import CacheEntry, cache_entries, cache_folder, clear_cache, read_report
    from tintype.engine.build.explain import explained
    from tintype.engine.build.four_bits import (
        BLOCK,
        BlockScales,
        block_scales,
        fits_blocks,
        from_integers,
        to_integers,
    )
    from tintype.engine.build.graph import graph_bytes, graph_operations, graph_session, run_graph
    from tintype.engine.build.layers import AdaptableShapes, adaptable_shapes
    from tintype.engine.build.lengths import lengths_with
    from tintype.engine.build.measure import AS_IS, layer_costs
    from tintype.engine.build.options import BuildOptions
    from tintype.engine.build.ranges import graph_as_it_stands, measure_ranges
    from tintype.engine.device.abilities import has_ability
    from tintype.engine.device.devices import Device, list_devices
    from tintype.engine.device.disturbance import Reading, others_share
    from tintype.engine.device.hardware import Gpu, gpus
    from tintype.engine.device.installation import ort_version
    from tintype.engine.device.machine import cpu_name, default_threads, instruction_sets, most_threads, processor_kind
    from tintype.engine.device.process_memory import peak_rss_bytes, status_bytes
    from tintype.engine.device.providers import Target, resolve_provider
    from tintype.engine.run.heap import return_large_blocks
    from tintype.engine.run.placement import Placement
    from tintype.engine.run.plain import PlainGraph
    from tintype.engine.run.session import Session, open_session
    from tintype.engine.run.strips import read_strips

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
    "BLOCK": "build.four_bits",
    "BlockScales": "build.four_bits",
    "block_scales": "build.four_bits",
    "fits_blocks": "build.four_bits",
    "from_integers": "build.four_bits",
    "to_integers": "build.four_bits",
    "explained": "build.explain",
    "Device": "device.devices",
    "list_devices": "device.devices",
    "AdaptableShapes": "build.layers",
    "adaptable_shapes": "build.layers",
    "lengths_with": "build.lengths",
    "graph_session": "build.graph",
    "run_graph": "build.graph",
    "Gpu": "device.hardware",
    "gpus": "device.hardware",
    "default_threads": "device.machine",
    "most_threads": "device.machine",
    "BuildOptions": "build.options",
    "Placement": "run.placement",
    "PlainGraph": "run.plain",
    "peak_rss_bytes": "device.process_memory",
    "Target": "device.providers",
    "ort_version": "device.installation",
    "resolve_provider": "device.providers",
    "graph_as_it_stands": "build.ranges",
    "measure_ranges": "build.ranges",
    "return_large_blocks": "run.heap",
    "Session": "run.session",
    "open_session": "run.session",
    # What measuring needs beside.
    "AS_IS": "build.measure",
    "Reading": "device.disturbance",
    "has_ability": "device.abilities",
    "cpu_name": "device.machine",
    "graph_bytes": "build.graph",
    "graph_operations": "build.graph",
    "instruction_sets": "device.machine",
    "layer_costs": "build.measure",
    "others_share": "device.disturbance",
    "processor_kind": "device.machine",
    "read_report": "build.cache",
    "read_strips": "run.strips",
    "status_bytes": "device.process_memory",
}

__all__ = [
    "AS_IS",
    "BLOCK",
    "AdaptableShapes",
    "BlockScales",
    "BuildOptions",
    "CacheEntry",
    "Device",
    "Gpu",
    "GraphSource",
    "Placement",
    "PlainGraph",
    "Reading",
    "Session",
    "Target",
    "adaptable_shapes",
    "begin_builds",
    "block_scales",
    "build_id",
    "build_key",
    "cache_entries",
    "cache_folder",
    "clear_cache",
    "cpu_name",
    "default_threads",
    "ensure_build",
    "explained",
    "fits_blocks",
    "from_integers",
    "gpus",
    "graph_as_it_stands",
    "graph_bytes",
    "graph_operations",
    "graph_session",
    "has_ability",
    "instruction_sets",
    "is_timed",
    "layer_costs",
    "lengths_with",
    "list_devices",
    "measure_ranges",
    "most_threads",
    "open_role",
    "open_session",
    "ort_version",
    "others_share",
    "peak_rss_bytes",
    "processor_kind",
    "read_report",
    "read_strips",
    "resolve_provider",
    "return_large_blocks",
    "run_graph",
    "status_bytes",
    "to_integers",
    "with_kernels_settled",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
