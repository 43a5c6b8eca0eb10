"""What a build tried for the layers of a graph, and what a call of it could not be faster than."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tintype.bench.job import GraphJob
from tintype.bench.peer_graphs import graph_dims, graph_options
from tintype.bundle import open_bundle
from tintype.cli.build import by_kind
from tintype.engine import resolve_provider
from tintype.engine.build.builds import find_build
from tintype.engine.build.cache import read_report
from tintype.engine.build.graph import graph_bytes
from tintype.engine.build.measure import AS_IS
from tintype.errors import BuildError

MIB = 2**20


def tried_layers(job: GraphJob) -> list[dict[str, Any]]:
    """By kind of layer, the longest first: how many there are, and what each way took on this machine when it was
    built. Raises BuildError when there is no such build."""
    bundle = open_bundle(job.model)
    folder = find_build(bundle, job.role, resolve_provider("cpu"), options=graph_options(job))
    if folder is None:
        raise BuildError(f"{job.role} of {bundle.name} has no build for this job", fix="open it once before")
    rows = [_kind(members) for members in by_kind(read_report(folder).get("choices", ()))]
    return sorted(rows, key=lambda row: -row["milliseconds_together"])


def _kind(members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Layers of one kind, of which the first one's times stand for all."""
    chosen = members[0]["chosen"]
    return {
        "layer": members[0]["layer"],
        "count": len(members),
        "chosen": chosen,
        "milliseconds_together": round(sum(each["ways"][chosen]["seconds"] for each in members) * 1e3, 2),
        "ways": {
            name: {
                "milliseconds": round(way["seconds"] * 1e3, 3),
                "weights_mib": round(way["weight_bytes"] / MIB, 2),
                "psnr_db": way["psnr_db"],
            }
            for name, way in sorted(members[0]["ways"].items(), key=lambda item: item[1]["seconds"])
        },
    }


def limits(
    job: GraphJob, layers: Sequence[Mapping[str, Any]], operations: Mapping[str, int], rates: Mapping[str, Any]
) -> dict[str, float]:
    """Seconds that a call is made of, and seconds that its parts would take at the rates measured in the same run.

    operations: of the canonical graph, by operator. rates: as `rates.RatesPeer` tells them, summarized. Winograd's
    kernels compute with fewer operations than the canonical graph, and so may be below what that would take.
    """
    products = [rate for name, rate in rates.items() if name.startswith("fp32") and name.endswith("GFLOP/s")]
    moved = graph_bytes(open_bundle(job.model).graph_path(job.role), graph_dims(job))
    found = {
        "layers_as_chosen_seconds": sum(row["milliseconds_together"] for row in layers) / 1e3,
        "layers_as_is_seconds": sum(row["count"] * row["ways"][AS_IS]["milliseconds"] for row in layers) / 1e3,
        "bytes_moved": float(moved),
    }
    for name, operation in (("best", "largest"), ("median", "median")):
        rate = max(each[operation] for each in products)
        for operator, count in operations.items():
            found[f"{operator} at the {name} product rate, seconds"] = count / rate / 1e9
    copy = rates.get("copy GB/s")
    if copy is not None:
        found["bytes_moved at the copy rate, seconds"] = moved / copy["median"] / 1e9
    return {name: round(value, 4) for name, value in found.items()}
